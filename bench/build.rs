//! Links librocksdb, the system's own: `src/rocksdb/ffi.rs` declares the few
//! functions of its stable C API that are used.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=ROCKSDB_LIB_DIR");
    let folder = std::env::var_os("ROCKSDB_LIB_DIR");
    if let Some(folder) = &folder {
        println!("cargo:rustc-link-search=native={}", folder.display());
    } else if !std::path::Path::new("/usr/include/rocksdb/c.h").exists() {
        println!(
            "cargo:warning=librocksdb seems to be missing: install librocksdb-dev (Debian) or set \
             ROCKSDB_LIB_DIR"
        );
    }
    println!("cargo:rustc-link-lib=dylib=rocksdb");
}
