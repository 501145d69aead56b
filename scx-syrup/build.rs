//! Compiles the root scheduler, the trusted half of policies, and the policies
//! that ship with the hook the same way the engine compiles a user's policy.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use libbpf_cargo::SkeletonBuilder;
use syrup_abi::{Compiler, HEADERS};

/// Our own BPF programs: source and object, without their suffixes.
const PROGRAMS: &[&str] = &["root", "policy"];

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=policies");
    println!("cargo::rerun-if-env-changed=BPF_CLANG");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let compiler = Compiler::find()?;

    let include = out.join("include");
    for (name, text) in HEADERS {
        let path = include.join(name);
        fs::create_dir_all(path.parent().context("a header outside a folder")?)?;
        fs::write(path, text)?;
    }
    let include = include.to_str().context("OUT_DIR is not UTF-8")?;

    // Unpacks vmlinux.h and the scx headers. The rest of BpfBuilder is not used:
    // it makes a skeleton, for which the trusted half, whose schedule() is
    // missing until a policy is linked, cannot be opened.
    scx_cargo::BpfBuilder::new()?;
    let scx = out.join("scx_utils-bpf_h");
    let arch = scx.join("arch").join(scx_cargo::ClangInfo::new()?.kernel_target()?);
    let (scx, arch) = (scx.to_str().context("OUT_DIR")?, arch.to_str().context("OUT_DIR")?);
    for name in PROGRAMS {
        SkeletonBuilder::new()
            .source(format!("src/{name}.bpf.c"))
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
                "-isystem",
                arch,
                "-isystem",
                scx,
            ])
            .build()
            .with_context(|| format!("src/{name}.bpf.c"))?;
    }
    layout(&out, include)?;
    policies(&compiler, Path::new("policies"), &out)
}

/// The Rust view of `layout.h`.
fn layout(out: &Path, include: &str) -> Result<()> {
    bindgen::Builder::default()
        .header("src/layout.h")
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

/// Writes `policies.rs`: the table of shipped policies, in order of their names.
fn policies(compiler: &Compiler, dir: &Path, out: &Path) -> Result<()> {
    let mut sources: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ext| ext == "c"))
        .collect();
    sources.sort();
    let mut table = String::from("&[\n");
    for path in sources {
        let stem = path.file_stem().and_then(|s| s.to_str()).context("a policy without a name")?;
        let source = fs::read_to_string(&path)?;
        let summary = summary(&source)
            .with_context(|| format!("{}: no head comment that ends a sentence", path.display()))?;
        let compiled = compiler
            .compile(&format!("{stem}.c"), &source)
            .map_err(|e| anyhow!("{}: {e}", path.display()))?;
        let object = out.join(format!("policy-{stem}.o"));
        fs::write(&object, compiled.object)?;
        let path = fs::canonicalize(&path)?;
        table.push_str(&format!(
            "Builtin {{ name: {stem:?}, summary: {summary:?}, source: include_str!({path:?}), \
             object: include_bytes!({object:?}) }},\n"
        ));
    }
    table.push_str("]\n");
    fs::write(out.join("policies.rs"), table)?;
    Ok(())
}

/// The first sentence of the head comment, which follows the licence line.
fn summary(source: &str) -> Option<String> {
    let comment = source.split("/*\n").nth(1)?.split("*/").next()?;
    let text: Vec<&str> =
        comment.lines().map(|line| line.trim_start_matches(" *").trim()).collect();
    let text = text.join(" ");
    let end = text.find(". ").map_or(text.trim_end().len(), |dot| dot + 1);
    let sentence = text.get(..end)?.trim();
    sentence.ends_with('.').then(|| sentence.to_owned())
}
