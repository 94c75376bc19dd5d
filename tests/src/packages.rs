//! The images that `tests/images/build.sh` makes of Debian packages, and the programs of packages for the side of the host.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder that `build.sh` describes: built already (`SERVIN_TEST_IMAGES`), or now, which a cache makes short. `None`, and
/// a line that says so, where the packages cannot be had.
///
/// # Panics
/// If the images cannot be made from packages that are there.
pub fn folder() -> Option<PathBuf> {
    let said = env::var("SERVIN_TEST_IMAGES").unwrap_or_else(|_| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/build.sh");
        let built = Command::new(script).output().expect("the script runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        String::from_utf8_lossy(&built.stdout).trim().to_owned()
    });
    if said.starts_with("skipped: ") {
        println!("{said}");
        return None;
    }
    let folder = PathBuf::from(said);
    assert!(folder.join("versions").exists(), "no images in {}", folder.display());
    Some(folder)
}

/// A program of a package, to be run on the host: `redis-cli` or `docker-registry`. `None` as in [`folder`].
pub fn host_program(name: &str) -> Option<PathBuf> {
    Some(folder()?.join("host/bin").join(name))
}
