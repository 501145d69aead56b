//! Applications in C, built and run as their authors would.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::Ctl;

/// A C program linked with libsyrup, in a folder of its own that any user may read.
#[derive(Debug)]
pub struct CProgram {
    dir: TempDir,
}

impl CProgram {
    /// Compiles and links one source file.
    ///
    /// # Panics
    /// With the compiler's words, when it does not build.
    #[must_use]
    pub fn build(source: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("syrup-test-").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let test = std::env::current_exe().unwrap();
        let library = test.parent().unwrap().join("libsyrup.so");
        std::fs::copy(&library, dir.path().join("libsyrup.so"))
            .unwrap_or_else(|e| panic!("{}: {e}", library.display()));
        let at_run_time = format!("libsyrup.so.{}", env!("CARGO_PKG_VERSION_MAJOR"));
        std::os::unix::fs::symlink("libsyrup.so", dir.path().join(at_run_time)).unwrap();
        let compiled = Command::new("cc")
            .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-o"])
            .arg(dir.path().join("program"))
            .arg(source)
            .arg("-I")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../include"))
            .arg("-L")
            .arg(dir.path())
            .arg("-lsyrup")
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        Self { dir }
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file into its folder.
    ///
    /// # Panics
    /// When it cannot.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The command that runs it for `app`, as a user.
    #[must_use]
    pub fn command(&self, ctl: &Ctl, app: &str, uid: u32) -> Command {
        let mut command = Command::new(self.dir.path().join("program"));
        command
            .env("LD_LIBRARY_PATH", self.dir.path())
            .env("SYRUP_SOCKET", ctl.socket())
            .env("SYRUP_BPFFS", ctl.bpffs())
            .env("SYRUP_APP", app)
            .uid(uid)
            .gid(crate::GROUP);
        command
    }
}
