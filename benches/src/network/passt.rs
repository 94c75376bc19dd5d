//! `passt` as the other end of a card.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// It listens at once, or it never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `passt` that serves one container, with the addresses that a container has.
#[derive(Debug)]
pub(super) struct Passt {
    child: Child,
    folder: TempDir,
}

impl Passt {
    /// Starts it and waits until it listens. Started by root it becomes `nobody`, and makes its socket as such.
    pub(super) fn start(program: &Path) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777))?;
        let log = File::create(folder.path().join("log"))?;
        let socket = folder.path().join("socket");
        let child = Command::new(program)
            .args(["-1", "-f", "-4", "-a", "10.0.2.15", "-n", "24", "-g", "10.0.2.2", "--no-map-gw"])
            .args(["-t", "none", "-u", "none", "-s"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut passt = Self { child, folder };
        let began = Instant::now();
        while !socket.exists() {
            let is_over = passt.child.try_wait()?.is_some();
            if is_over || began.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("passt does not listen; it said: {}", passt.end())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(passt)
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Ends it, and gives back what it said.
    pub(super) fn end(mut self) -> String {
        let status = match self.child.try_wait() {
            Ok(Some(status)) => format!(" ({status})"),
            _ => String::new(),
        };
        let _ = self.child.kill();
        let _ = self.child.wait();
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default() + &status
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
