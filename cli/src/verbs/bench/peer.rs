//! Other monitors on the same kernel, initramfs and finish line, beside our own in the same run.
//!
//! The guest is our kernel with one program: it writes the first word that the kernel does not know, which is the run's token,
//! to its console and asks for a reset. A run is measured from before the monitor's exec until the token is read from its
//! standard output, then the monitor is killed. All of them give one processor, 128 MiB and a 16550 serial port.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Serialize;
use servin_init::cpio::Archive;

use super::stats::Summary;

/// Memory of the guest.
const MEMORY_MIB: u32 = 128;
/// What the kernel is told. The last word, the token, is put behind it.
const WORDS: &str = "console=ttyS0 8250.nr_uarts=1 quiet reboot=t panic=-1";
/// A monitor that has said this much without the token never will.
const MOST_OUTPUT: usize = 1 << 20;

/// How long a boot may take before it is given up, on hosts that emulate guest kernels too.
const DEADLINE: Duration = Duration::from_secs(120);

/// The program: writes argv[1] and a line feed to its standard output, then `reboot(RB_AUTOBOOT)`.
const PROGRAM: [u8; 59] = [
    0x48, 0x8b, 0x74, 0x24, 0x10, // mov rsi, [rsp + 16]
    0x31, 0xd2, // xor edx, edx
    0x80, 0x3c, 0x16, 0x00, // again: cmp byte [rsi + rdx], 0
    0x74, 0x04, // je end
    0xff, 0xc2, // inc edx
    0xeb, 0xf6, // jmp again
    0xc6, 0x04, 0x16, 0x0a, // end: mov byte [rsi + rdx], '\n'
    0xff, 0xc2, // inc edx
    0xbf, 0x01, 0x00, 0x00, 0x00, // mov edi, 1
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, SYS_write
    0x0f, 0x05, // syscall
    0xb8, 0xa9, 0x00, 0x00, 0x00, // mov eax, SYS_reboot
    0xbf, 0xad, 0xde, 0xe1, 0xfe, // mov edi, LINUX_REBOOT_MAGIC1
    0xbe, 0x69, 0x19, 0x12, 0x28, // mov esi, LINUX_REBOOT_MAGIC2
    0xba, 0x67, 0x45, 0x23, 0x01, // mov edx, LINUX_REBOOT_CMD_RESTART
    0x0f, 0x05, // syscall
    0xeb, 0xfe, // jmp here
];

/// A monitor that can boot that guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Peer {
    /// Our own, as a library: no container, no agent, no filter of system calls.
    Servin,
    /// Firecracker, with its own filter.
    Firecracker,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// QEMU's machine `microvm`.
    Qemu,
}

/// All of them but ours, by the name to ask for and the program.
const OTHERS: [(&str, Peer, &str); 3] = [
    ("firecracker", Peer::Firecracker, "firecracker"),
    ("cloud-hypervisor", Peer::CloudHypervisor, "cloud-hypervisor"),
    ("qemu", Peer::Qemu, "qemu-system-x86_64"),
];

/// A monitor of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Monitor {
    pub(super) peer: Peer,
    program: PathBuf,
}

/// The monitors that `names` means: `all` is those that are found, any other has to be.
pub(super) fn monitors(names: &str, path: Option<&OsStr>) -> Result<Vec<Monitor>, String> {
    let on_path = |program: &str| {
        let folders = std::env::split_paths(path.unwrap_or_default());
        folders.map(|folder| folder.join(program)).find(|file| file.is_file())
    };
    let found = |(_, peer, program): &(&str, Peer, &str)| {
        on_path(program).map(|program| Monitor { peer: *peer, program })
    };
    if names == "all" {
        let all: Vec<_> = OTHERS.iter().filter_map(found).collect();
        let programs = OTHERS.map(|(.., program)| program).join(", ");
        return if all.is_empty() { Err(format!("none of {programs} is on PATH")) } else { Ok(all) };
    }
    let one = |name: &str| {
        let known = OTHERS.iter().find(|(other, ..)| *other == name.trim());
        let known = known.ok_or("it is firecracker, cloud-hypervisor, qemu, several with commas, or all")?;
        found(known).ok_or_else(|| format!("{} is not on PATH", known.2))
    };
    names.split(',').map(one).collect()
}

/// What every monitor boots: files that go with the value.
#[derive(Debug)]
pub(super) struct Guest {
    kernel: PathBuf,
    folder: PathBuf,
}

impl Guest {
    /// With this kernel; the initramfs is made in a new folder below `within`.
    pub(super) fn new(kernel: &Path, within: &Path) -> io::Result<Self> {
        let folder = within.join(format!("servin-bench-{}", std::process::id()));
        std::fs::create_dir(&folder)?;
        let guest = Self { kernel: kernel.to_path_buf(), folder };
        std::fs::write(guest.initramfs(), initramfs())?;
        Ok(guest)
    }

    fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs")
    }

    /// The command that boots it.
    fn command(&self, monitor: &Monitor, token: &str) -> io::Result<Command> {
        let words = format!("{WORDS} {token}");
        let initramfs = self.initramfs();
        let mut command = Command::new(&monitor.program);
        match monitor.peer {
            Peer::Servin => {
                command.args(["bench", "monitor"]).args([&self.kernel, &initramfs]).arg(words);
            }
            Peer::Firecracker => {
                let machine = serde_json::json!({
                    "boot-source": { "kernel_image_path": self.kernel, "initrd_path": initramfs, "boot_args": words },
                    "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY_MIB },
                    "drives": [],
                });
                let file = self.folder.join("firecracker.json");
                std::fs::write(&file, machine.to_string())?;
                command.arg("--no-api").arg("--config-file").arg(file);
            }
            Peer::CloudHypervisor => {
                command.arg("--kernel").arg(&self.kernel).arg("--initramfs").arg(initramfs);
                command.arg("--cmdline").arg(words).args(["--serial", "tty", "--console", "off"]);
                command.args(["--cpus", "boot=1", "--memory", &format!("size={MEMORY_MIB}M")]);
            }
            Peer::Qemu => {
                let machine = "microvm,accel=kvm,x-option-roms=off,pic=off,pit=off,rtc=off,isa-serial=on,auto-kernel-cmdline=off";
                command.args(["-M", machine, "-cpu", "host", "-m", &MEMORY_MIB.to_string()]);
                command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
                command.args(["-serial", "stdio", "-kernel"]).arg(&self.kernel).arg("-initrd").arg(initramfs);
                command.arg("-append").arg(words);
            }
        }
        Ok(command)
    }

    /// Milliseconds from before the monitor's exec until it has given the guest's token.
    pub(super) fn sample(&self, monitor: &Monitor, token: &str, deadline: Duration) -> io::Result<f64> {
        let mut command = self.command(monitor, token)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn()?;
        let seen = wait_for(&mut child, token.as_bytes(), deadline);
        let mut why = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            let _ = stderr.read_to_string(&mut why);
        }
        child.wait()?;
        match seen {
            Ok(Some(at)) => Ok((at - began).as_secs_f64() * 1e3),
            Ok(None) => {
                let why = why.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
                Err(io::Error::other(format!("it ended without the token: {why}")))
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// When the token comes on the standard output, if it does; a monitor that takes longer than the deadline is killed.
fn wait_for(child: &mut Child, token: &[u8], deadline: Duration) -> io::Result<Option<Instant>> {
    let Some(mut stdout) = child.stdout.take() else { return Err(io::Error::other("no pipe")) };
    let (parts, output) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut buffer) {
            if parts.send(buffer.get(..count).unwrap_or_default().to_vec()).is_err() {
                break;
            }
        }
    });
    let until = Instant::now() + deadline;
    let mut said: Vec<u8> = Vec::new();
    let seen = loop {
        match output.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(part) => said.extend(part),
            Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                break Err(io::Error::other(format!("no token within {} s", deadline.as_secs())));
            }
        }
        if said.windows(token.len()).any(|part| part == token) {
            break Ok(Some(Instant::now()));
        }
        if said.len() > MOST_OUTPUT {
            break Err(io::Error::other("it says a lot, and not the token"));
        }
    };
    drop(output);
    let _ = child.kill();
    let _ = reader.join();
    seen
}

/// The root file system: the program, and the device that is its standard output.
fn initramfs() -> Vec<u8> {
    let mut archive = Archive::new();
    archive.directory("dev", 0o755).character("dev/console", 0o600, 5, 1).file("init", 0o755, &program());
    archive.finish()
}

/// [`PROGRAM`] as an ELF file of one segment.
fn program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let length = HEADERS + PROGRAM.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC, EM_X86_64, EV_CURRENT; entry, program headers, no section headers.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    [BASE + HEADERS, 64, 0].iter().for_each(|field| file.extend(field.to_le_bytes()));
    // Flags; sizes of this header and of one program header, of which there is one.
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable: the whole file.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    [0, BASE, BASE, length, length, 0x1000].iter().for_each(|field| file.extend(field.to_le_bytes()));
    file.extend(PROGRAM);
    file
}

/// What was measured of one monitor.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Boots {
    pub(super) monitor: Peer,
    /// Milliseconds to the token; none when no run counts.
    pub(super) token: Option<Summary>,
    pub(super) samples: Vec<f64>,
    /// Why runs do not count.
    pub(super) refused: Vec<String>,
}

impl Peer {
    /// Its name, as `--against` takes it.
    pub(super) fn name(self) -> &'static str {
        OTHERS.iter().find(|(_, peer, _)| *peer == self).map_or("servin", |(name, ..)| name)
    }
}

/// Boots the guest `runs` times on each, ours among them, one monitor after the other in turns; `token` makes a new one.
pub(super) fn measure(
    others: Vec<Monitor>,
    guest: &Guest,
    runs: u32,
    token: impl Fn() -> String,
) -> io::Result<Vec<Boots>> {
    let ours = Monitor { peer: Peer::Servin, program: std::env::current_exe()? };
    let monitors: Vec<Monitor> = std::iter::once(ours).chain(others).collect();
    let mut all: Vec<Boots> = monitors
        .iter()
        .map(|monitor| Boots { monitor: monitor.peer, token: None, samples: Vec::new(), refused: Vec::new() })
        .collect();
    // The first of each is not counted: what it brings into memory is there for the others.
    for run in 0..=runs {
        for (monitor, boots) in monitors.iter().zip(&mut all) {
            match guest.sample(monitor, &token(), DEADLINE) {
                Ok(_) if run == 0 => {}
                Ok(took) => boots.samples.push(took),
                Err(error) => boots.refused.push(error.to_string()),
            }
        }
    }
    for boots in &mut all {
        boots.token = Summary::new(boots.samples.iter().copied());
    }
    Ok(all)
}

/// What the command `servin bench monitor KERNEL INITRAMFS WORDS` does: our monitor, and nothing around it.
pub(crate) fn boot(kernel: &Path, initramfs: &Path, words: &str) -> io::Result<()> {
    let vm = servin_vmm::VmBuilder::new()
        .kernel(kernel)
        .initramfs(servin_vmm::Source::File(initramfs.into()))
        .memory_mib(MEMORY_MIB.into())
        .serial(Box::new(io::stdout()))
        .cmdline_extra(words)
        .build()
        .map_err(io::Error::other)?;
    vm.start().map_err(io::Error::other)?;
    vm.wait().map(|_| ()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn monitor(dir: &Path, peer: Peer, script: &str) -> Monitor {
        let program = dir.join(peer.name());
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Monitor { peer, program }
    }

    #[test]
    fn monitors_are_asked_for_by_name_and_have_to_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().as_os_str();
        assert!(monitors("all", Some(path)).unwrap_err().contains("firecracker"));
        monitor(dir.path(), Peer::Firecracker, "");
        assert_eq!(monitors("all", Some(path)).unwrap().len(), 1);
        assert_eq!(monitors("firecracker", Some(path)).unwrap()[0].peer, Peer::Firecracker);
        assert_eq!(
            monitors("firecracker, qemu", Some(path)).unwrap_err(),
            "qemu-system-x86_64 is not on PATH"
        );
        assert!(monitors("bochs", Some(path)).unwrap_err().contains("cloud-hypervisor"));
    }

    #[test]
    fn a_run_counts_when_the_guests_token_comes_and_the_monitor_is_killed_then() {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest::new(Path::new("/kernel"), dir.path()).unwrap();
        for peer in [Peer::Servin, Peer::Firecracker, Peer::CloudHypervisor, Peer::Qemu] {
            let says = "case \"$*\" in *.json) words=$(cat \"$3\");; *) words=$*;; esac; echo noise; \
                        echo \"$words\" | grep -o 'token-[0-9]*'; exec sleep 1000";
            let took = guest.sample(&monitor(dir.path(), peer, says), "token-17", DEADLINE).unwrap();
            assert!(took > 0.0);
        }
        let quiet = monitor(dir.path(), Peer::Qemu, "echo no such machine >&2; exit 1");
        let error = guest.sample(&quiet, "token-18", DEADLINE).unwrap_err().to_string();
        assert_eq!(error, "it ended without the token: no such machine");
        let hangs = monitor(dir.path(), Peer::Qemu, "echo booting; exec sleep 1000");
        let error = guest.sample(&hangs, "token-19", Duration::from_secs(1)).unwrap_err().to_string();
        assert_eq!(error, "no token within 1 s");
        let folder = guest.folder.clone();
        drop(guest);
        assert!(!folder.exists());
    }

    #[test]
    fn the_program_is_an_elf_file_that_says_its_first_word() {
        // On the machine itself it would ask for a reset, which is refused to all but root: the word comes before.
        let elf = program();
        assert_eq!(elf.len(), 64 + 56 + PROGRAM.len());
        assert_eq!(&elf[..4], b"\x7fELF");
        assert_eq!(
            u64::from_le_bytes(elf[24..32].try_into().unwrap()),
            0x40_0000 + 120,
            "the entry is behind the headers"
        );
    }
}
