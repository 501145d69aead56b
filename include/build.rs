//! Generates the Rust view of `syrup/abi.h`.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=syrup");
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("abi.rs");
    bindgen::Builder::default()
        .header("syrup/abi.h")
        .allowlist_item("(SYRUP|syrup)_.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .derive_eq(true)
        .generate_comments(true)
        .layout_tests(true)
        .generate()?
        .write_to_file(out)?;
    Ok(())
}
