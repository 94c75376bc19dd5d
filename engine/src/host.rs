//! What the host offers: the hypervisor and its kind, as far as it can be seen without making a machine. On Linux that is
//! KVM's device and modules, on macOS one word of the system.
//!
//! `servin doctor` prints it; a start reads the kind to say why it is slow on some hosts.

#[cfg(target_os = "linux")]
use std::fs;
use std::io;
#[cfg(target_os = "linux")]
use std::path::Path;

#[cfg(target_os = "macos")]
use crate::os;

/// Which implementation answers: behind `/dev/kvm`, or another system's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `kvm_amd`: AMD's virtualization extensions.
    Amd,
    /// `kvm_intel`: Intel's.
    Intel,
    /// The one of arm64.
    Arm64,
    /// `kvm_pvm`: no extensions are used. Guest kernels are emulated, about 1.5 million instructions a second, so
    /// that a start takes many seconds; programs run at full speed.
    Pvm,
    /// Hypervisor.framework of macOS.
    Hvf,
    /// Another one, or it cannot be seen which.
    Unknown,
}

impl Kind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Amd => "kvm_amd",
            Kind::Intel => "kvm_intel",
            Kind::Arm64 => "kvm of arm64",
            Kind::Pvm => "kvm_pvm",
            Kind::Hvf => "Hypervisor.framework",
            Kind::Unknown => "kvm of unknown kind",
        }
    }

    /// Whether guest kernels are emulated here.
    #[must_use]
    pub fn is_slow(self) -> bool {
        self == Kind::Pvm
    }
}

/// The hypervisor's device.
#[derive(Debug)]
pub enum Device {
    /// It can be used.
    Usable,
    /// It is there, and opening it fails.
    Refused(io::Error),
    /// There is none.
    Missing,
}

/// What was found.
#[derive(Debug)]
pub struct Host {
    /// `/dev/kvm`; on macOS, whether the system says that it has a hypervisor.
    pub device: Device,
    /// Who answers there; `None` if no such module is loaded.
    pub kind: Option<Kind>,
    /// This host is a virtual machine itself.
    pub is_guest: bool,
    /// The processor has virtualization extensions that this system can see: `svm` or `vmx`.
    pub extensions: Option<&'static str>,
    /// `always`, `madvise` or `never`; `None` if the kernel has no transparent huge pages.
    pub huge_pages: Option<String>,
}

/// Opens the hypervisor, which checks its version and that it can do all that is needed, and gives what it can do.
///
/// # Errors
/// Says what is missing.
pub fn capabilities() -> crate::Result<servin_vmm::hv::Caps> {
    Ok(servin_vmm::hv::open()?.caps().clone())
}

/// The device of KVM.
pub const KVM: &str = "/dev/kvm";

impl Host {
    /// Looks at this host.
    #[cfg(target_os = "macos")]
    #[must_use]
    pub fn look() -> Self {
        let kind = hypervisor_kind();
        Host {
            device: if kind.is_some() { Device::Usable } else { Device::Missing },
            kind,
            is_guest: os::sysctl(c"kern.hv_vmm_present").is_some_and(|is| is != 0),
            extensions: None,
            huge_pages: None,
        }
    }

    /// Looks at this host.
    #[cfg(target_os = "linux")]
    #[must_use]
    pub fn look() -> Self {
        let device = match fs::OpenOptions::new().read(true).write(true).open(KVM) {
            Ok(_) => Device::Usable,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Device::Missing,
            Err(error) => Device::Refused(error),
        };
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let huge = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok();
        Host {
            device,
            kind: kind(Path::new("/sys/module")),
            is_guest: has_flag(&cpuinfo, "hypervisor"),
            extensions: ["svm", "vmx"].into_iter().find(|flag| has_flag(&cpuinfo, flag)),
            huge_pages: huge.and_then(|text| chosen(&text)),
        }
    }

    /// Who answers behind `/dev/kvm`, where it is there and this user can open it: a module may be loaded without.
    #[must_use]
    pub fn usable(&self) -> Option<Kind> {
        self.kind.filter(|_| matches!(self.device, Device::Usable))
    }
}

/// Who answers behind `/dev/kvm`, from the loaded modules.
#[cfg(target_os = "linux")]
#[must_use]
pub fn hypervisor_kind() -> Option<Kind> {
    kind(Path::new("/sys/module"))
}

/// Hypervisor.framework, where the system says that this Mac can have machines.
#[cfg(target_os = "macos")]
#[must_use]
pub fn hypervisor_kind() -> Option<Kind> {
    os::sysctl(c"kern.hv_support").is_some_and(|able| able != 0).then_some(Kind::Hvf)
}

/// Bytes of memory that this host has.
#[cfg(target_os = "linux")]
#[must_use]
pub fn memory() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Bytes of memory that this host has.
#[cfg(target_os = "macos")]
#[must_use]
pub fn memory() -> Option<u64> {
    os::sysctl(c"hw.memsize")
}

/// Bytes of a process in the host's memory: of a monitor, those of its guest among them. `None` for one that has ended.
#[cfg(target_os = "linux")]
#[must_use]
pub fn resident(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Bytes of a process in the host's memory: of a monitor, those of its guest among them. `None` for one that has ended.
#[cfg(target_os = "macos")]
#[must_use]
pub fn resident(pid: i32) -> Option<u64> {
    Some(os::task(pid).ok()?.pti_resident_size)
}

/// What the processor says it is and can do: another answer is another processor.
#[cfg(target_arch = "x86_64")]
pub(crate) fn cpu_identity() -> Vec<u32> {
    use std::arch::x86_64::__cpuid_count;
    // What the operating system has switched on is not the processor's: OSXSAVE, OSPKE; and the number of the
    // processor that happens to run this is left out.
    const OSXSAVE: u32 = 1 << 27;
    const OSPKE: u32 = 1 << 4;
    let (vendor, model, features, extended, state) = (
        __cpuid_count(0, 0),
        __cpuid_count(1, 0),
        __cpuid_count(7, 0),
        __cpuid_count(0x8000_0001, 0),
        __cpuid_count(0xd, 1),
    );
    vec![
        vendor.ebx,
        vendor.ecx,
        vendor.edx,
        model.eax,
        model.ecx & !OSXSAVE,
        model.edx,
        features.ebx,
        features.ecx & !OSPKE,
        features.edx,
        extended.ecx,
        extended.edx,
        state.eax,
    ]
}

/// What the system says of the processor and of what it can do: another answer is another processor.
#[cfg(all(target_arch = "aarch64", target_os = "macos"))]
pub(crate) fn cpu_identity() -> Vec<u32> {
    [c"hw.cputype", c"hw.cpusubtype", c"hw.cpufamily", c"hw.cpusubfamily"]
        .into_iter()
        // Each is a number of 32 bits.
        .map(|name| os::sysctl(name).and_then(|value| u32::try_from(value).ok()).unwrap_or(u32::MAX))
        .collect()
}

/// What the processors say they are and can do: another answer is another processor.
#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
pub(crate) fn cpu_identity() -> Vec<u32> {
    arm64_identity(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

/// What no backend runs on.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn cpu_identity() -> Vec<u32> {
    Vec::new()
}

/// MIDR_EL1 of each kind of processor in the machine, put together from what the kernel prints of it, whichever of them runs
/// this; then a checksum of the features that all have.
#[cfg(any(test, all(target_arch = "aarch64", target_os = "linux")))]
fn arm64_identity(cpuinfo: &str) -> Vec<u32> {
    /// MIDR_EL1, bits 19 to 16: the architecture is told by other registers.
    const BY_FEATURES: u32 = 0xf << 16;
    let values = |name: &'static str| {
        cpuinfo.lines().filter_map(move |line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then_some(value.trim())
        })
    };
    let numbers = |name| {
        values(name).map(|value| match value.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).unwrap_or(u32::MAX),
            None => value.parse().unwrap_or(u32::MAX),
        })
    };
    let fields = numbers("CPU implementer")
        .zip(numbers("CPU variant"))
        .zip(numbers("CPU part").zip(numbers("CPU revision")));
    let mut identity: Vec<u32> = fields
        .map(|((implementer, variant), (part, revision))| {
            (implementer & 0xff) << 24
                | (variant & 0xf) << 20
                | BY_FEATURES
                | (part & 0xfff) << 4
                | revision & 0xf
        })
        .collect();
    identity.sort_unstable();
    identity.dedup();
    let mut features: Vec<_> = values("Features").next().unwrap_or_default().split_whitespace().collect();
    features.sort_unstable();
    identity.push(crc32fast::hash(features.join(" ").as_bytes()));
    identity
}

#[cfg(target_os = "linux")]
fn kind(modules: &Path) -> Option<Kind> {
    // On x86 a module for the vendor comes with it.
    let alone = if cfg!(target_arch = "aarch64") { Kind::Arm64 } else { Kind::Unknown };
    [("kvm_pvm", Kind::Pvm), ("kvm_amd", Kind::Amd), ("kvm_intel", Kind::Intel), ("kvm", alone)]
        .into_iter()
        .find(|(module, _)| modules.join(module).is_dir())
        .map(|(_, kind)| kind)
}

#[cfg(target_os = "linux")]
fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|word| word == flag))
}

/// The word in brackets, as the kernel marks the one in force.
#[cfg(target_os = "linux")]
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_the_module_that_is_loaded() {
        let modules = tempfile::tempdir().unwrap();
        assert_eq!(kind(modules.path()), None);
        fs::create_dir(modules.path().join("kvm")).unwrap();
        let alone = if cfg!(target_arch = "aarch64") { Kind::Arm64 } else { Kind::Unknown };
        assert_eq!(kind(modules.path()), Some(alone));
        fs::create_dir(modules.path().join("kvm_pvm")).unwrap();
        assert_eq!(kind(modules.path()), Some(Kind::Pvm));
    }

    #[test]
    fn an_arm64_identity_is_the_same_on_every_core_and_another_for_other_cores_or_features() {
        let core = |part: &str, revision: &str| {
            format!(
                "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd crc32\nCPU implementer\t: 0x41\n\
                 CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {part}\nCPU revision\t: {revision}\n\n"
            )
        };
        let (big, little) = (core("0xd0c", "1"), core("0xd05", "0"));
        let features = crc32fast::hash(b"asimd crc32 fp");
        assert_eq!(arm64_identity(&big), [0x411f_d0c1, features]);
        assert_eq!(arm64_identity(&format!("{big}{big}")), arm64_identity(&big));
        let both = arm64_identity(&format!("{big}{little}{big}"));
        assert_eq!(both, [0x411f_d050, 0x411f_d0c1, features]);
        assert_eq!(arm64_identity(&format!("{little}{big}")), both);
        let fewer = big.replace("crc32", "");
        assert_ne!(arm64_identity(&fewer), arm64_identity(&big));
        assert_ne!(arm64_identity(&core("0xd0c", "2")), arm64_identity(&big));
        // Nonsense is not a reason to fail.
        assert_eq!(arm64_identity("CPU part: x\n: :\n").len(), 1);
    }

    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn this_processor_has_an_identity_and_keeps_it() {
        assert!(cpu_identity().len() > 1);
        assert_eq!(cpu_identity(), cpu_identity());
    }

    #[test]
    fn flags_are_whole_words() {
        let cpuinfo = "model name\t: x\nflags\t\t: fpu svm_lock hypervisor\n";
        assert!(has_flag(cpuinfo, "hypervisor"));
        assert!(!has_flag(cpuinfo, "svm"));
    }

    #[test]
    fn the_setting_in_force_stands_in_brackets() {
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen("none"), None);
    }
}
