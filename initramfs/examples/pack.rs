//! Packs the agent into an initramfs: `pack AGENT OUTPUT`. Run by `build.sh`.

use servin_init::cpio::Archive;

/// What the agent expects to find (`initramfs/agent/src/boot.rs`).
const MOUNT_POINTS: [&str; 6] = ["lower", "upper", "root", "cgroup", "shares", "files"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, agent, output] = &arguments[..] else {
        return Err("usage: pack AGENT OUTPUT".into());
    };
    let agent = std::fs::read(agent)?;
    let mut archive = Archive::new();
    archive.directory("dev", 0o755);
    // The kernel opens it for PID 1; the agent writes a last message to the other.
    archive.character("dev/console", 0o600, 5, 1).character("dev/kmsg", 0o600, 1, 11);
    for directory in MOUNT_POINTS {
        archive.directory(directory, 0o755);
    }
    archive.file("init", 0o755, &agent);
    std::fs::write(output, archive.finish())?;
    Ok(())
}
