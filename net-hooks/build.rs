//! Compiles the kernel side of the packet hooks, and the policies that ship
//! with them the same way the engine compiles a user's policy.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use libbpf_cargo::SkeletonBuilder;
use syrup_sdk::Compiler;

/// The hooks: folders in `src`, whose `bpf` holds a dispatcher, the trusted half of policies,
/// and what tells that deployments may be behind.
const HOOKS: &[&str] = &["socket_select"];

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=policies");
    println!("cargo::rerun-if-env-changed=BPF_CLANG");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let compiler = Compiler::find()?;

    let include = syrup_sdk::build::headers(&out).map_err(|e| anyhow!("{e}"))?;
    let include = include.to_str().context("OUT_DIR is not UTF-8")?;
    // Debian keeps <asm/types.h>, which <linux/bpf.h> includes, in a folder by
    // architecture that clang does not search for the BPF target.
    let asm = format!("/usr/include/{}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH")?);
    for hook in HOOKS {
        for program in ["dispatcher", "policy", "changes"] {
            let source = format!("src/{hook}/bpf/{program}.bpf.c");
            SkeletonBuilder::new()
                .source(&source)
                .obj(out.join(format!("{hook}_{program}.o")))
                .clang(compiler.path())
                .clang_args([
                    "-mcpu=v3",
                    "-std=gnu17",
                    "-Wall",
                    "-Wextra",
                    "-Werror",
                    "-I",
                    include,
                    "-idirafter",
                    &asm,
                ])
                .build()
                .with_context(|| source)?;
        }
    }
    syrup_sdk::build::policies(&compiler, Path::new("policies"), &out).map_err(|e| anyhow!("{e}"))
}
