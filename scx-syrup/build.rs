//! Compiles the root scheduler, the trusted half of policies, and the policies
//! that ship with the hook and those of its tests the same way the engine
//! compiles a user's policy.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use libbpf_cargo::SkeletonBuilder;
use syrup_sdk::Compiler;

/// Our own BPF programs, the last one for tests: their folder, and their name without suffix.
const PROGRAMS: &[(&str, &str)] =
    &[("src/bpf", "root"), ("src/bpf", "policy"), ("tests/bpf", "fifo")];

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=policies");
    println!("cargo::rerun-if-changed=tests/policies");
    println!("cargo::rerun-if-changed=tests/bpf");
    println!("cargo::rerun-if-env-changed=BPF_CLANG");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let compiler = Compiler::find()?;

    let include = syrup_sdk::build::headers(&out).map_err(|e| anyhow!("{e}"))?;
    let include = include.to_str().context("OUT_DIR is not UTF-8")?;

    // Unpacks vmlinux.h and the scx headers. The rest of BpfBuilder is not used:
    // it makes a skeleton, for which the trusted half, whose schedule() is
    // missing until a policy is linked, cannot be opened.
    scx_cargo::BpfBuilder::new()?;
    let scx = out.join("scx_utils-bpf_h");
    let arch = scx.join("arch").join(scx_cargo::ClangInfo::new()?.kernel_target()?);
    let (scx, arch) = (scx.to_str().context("OUT_DIR")?, arch.to_str().context("OUT_DIR")?);
    for (folder, name) in PROGRAMS {
        SkeletonBuilder::new()
            .source(format!("{folder}/{name}.bpf.c"))
            .obj(out.join(format!("{name}.o")))
            .clang(compiler.path())
            .clang_args([
                "-mcpu=v3",
                "-std=gnu17",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-Wno-unused-parameter",
                "-I",
                include,
                "-I",
                "src/bpf",
                "-isystem",
                arch,
                "-isystem",
                scx,
            ])
            .build()
            .with_context(|| format!("{folder}/{name}.bpf.c"))?;
    }
    layout(&out, include)?;
    // For tests that run it natively.
    cc::Build::new()
        .std("gnu17")
        .warnings_into_errors(true)
        .include(include)
        .file("src/bpf/fairness.c")
        .compile("syrup_fairness");
    syrup_sdk::build::policies(&compiler, Path::new("policies"), &out)
        .map_err(|e| anyhow!("{e}"))?;
    // Here rather than by the tests: these run in guests, where clang takes seconds.
    let tests = out.join("tests");
    fs::create_dir_all(&tests)?;
    syrup_sdk::build::policies(&compiler, Path::new("tests/policies"), &tests)
        .map_err(|e| anyhow!("{e}"))
}

/// The Rust view of `layout.h`.
fn layout(out: &Path, include: &str) -> Result<()> {
    bindgen::Builder::default()
        .header("src/bpf/layout.h")
        .clang_arg(format!("-I{include}"))
        .allowlist_item("(SYRUP_SCX|syrup_scx)_.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .layout_tests(true)
        .generate()?
        .write_to_file(out.join("layout.rs"))?;
    Ok(())
}
