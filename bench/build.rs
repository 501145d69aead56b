//! Links librocksdb, the system's own: `src/rocksdb/ffi.rs` declares the few
//! functions of its stable C API that are used. Compiles the programs that
//! Syrup's policies are compared with.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use libbpf_cargo::SkeletonBuilder;
use syrup_sdk::Compiler;

/// A policy that ships, from which an ablation is made.
const GET_PRIORITY: &str = "../scx-syrup/policies/get-priority.c";

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-changed={GET_PRIORITY}");
    println!("cargo:rerun-if-env-changed=BPF_CLANG");
    println!("cargo:rerun-if-env-changed=ROCKSDB_LIB_DIR");
    let folder = env::var_os("ROCKSDB_LIB_DIR");
    if let Some(folder) = &folder {
        println!("cargo:rustc-link-search=native={}", folder.display());
    } else if !Path::new("/usr/include/rocksdb/c.h").exists() {
        println!(
            "cargo:warning=librocksdb seems to be missing: install librocksdb-dev (Debian) or set \
             ROCKSDB_LIB_DIR"
        );
    }
    println!("cargo:rustc-link-lib=dylib=rocksdb");

    let asm = format!("/usr/include/{}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH")?);
    SkeletonBuilder::new()
        .source("bpf/bare.bpf.c")
        .obj(PathBuf::from(env::var("OUT_DIR")?).join("bare.o"))
        .clang(Compiler::find()?.path())
        .clang_args(["-mcpu=v3", "-std=gnu17", "-Wall", "-Wextra", "-Werror", "-idirafter", &asm])
        .build()
        .context("bpf/bare.bpf.c")?;
    without_preemption()
}

/// get-priority with nothing changed but that.
fn without_preemption() -> Result<()> {
    const SAYS: &str = ".preempt = true";
    let source = std::fs::read_to_string(GET_PRIORITY).context(GET_PRIORITY)?;
    ensure!(source.matches(SAYS).count() == 1, "{GET_PRIORITY} does not say {SAYS} once");
    let source = source.replace(SAYS, ".preempt = false");
    let name = "get-priority-no-preemption";
    let compiled = Compiler::find()?.compile(&format!("{name}.c"), &source)?;
    let object = PathBuf::from(env::var("OUT_DIR")?).join(format!("{name}.o"));
    std::fs::write(&object, compiled.object).with_context(|| object.display().to_string())
}
