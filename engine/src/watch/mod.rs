//! Waiting for something to be written to a log in a directory.

#[cfg(any(test, target_os = "macos"))]
mod files;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

#[cfg(target_os = "macos")]
pub(crate) use files::Changes;
#[cfg(target_os = "linux")]
pub use linux::Watch;
#[cfg(target_os = "macos")]
pub use macos::Watch;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Watch;

    #[test]
    fn what_was_written_is_heard_of_and_a_missing_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(dir.path()).unwrap();
        let file = dir.path().join("log");
        std::fs::write(&file, "a").unwrap();
        let (began, most) = (Instant::now(), Duration::from_secs(600));
        watch.wait(most);
        std::fs::write(&file, "ab").unwrap();
        watch.wait(most);
        assert!(began.elapsed() < most);
        assert!(Watch::new(&dir.path().join("not")).is_err());
    }
}
