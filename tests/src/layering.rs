//! The direction of the arrows: a crate, and a module, uses only what is below it.
//!
//! The floors are those of ARCHITECTURE.md. A module that stands on none of them fails the test: whoever adds one
//! says here where it stands.

/// A crate and its floor. A crate depends only on crates of lower floors.
pub const CRATES: &[(&str, u32)] = &[
    ("servin-init", 0),
    ("servin-guest-kernel", 0),
    ("servin-devices", 3),
    ("servin-vmm", 6),
    ("servin-engine", 7),
    ("servin", 8),
    ("servin-benches", 9),
    ("servin-tests", 9),
];

/// A module of a crate, and where it stands. `Only` is the module's own file, `Below` is it with everything in it.
#[derive(Debug, Clone, Copy)]
pub enum Module {
    /// The module itself without its submodules.
    Only(&'static str, u32),
    /// The module with all its submodules.
    Below(&'static str, u32),
    /// As `Below`, and its neighbours on the same floor do not use it.
    Apart(&'static str, u32),
}
use Module::{Apart, Below, Only};

/// The modules of `servin-devices`.
pub const DEVICES: &[Module] = &[
    Below("error", 1),
    Below("mem", 1),
    Below("os", 1),
    Below("irq", 1),
    Below("lock", 1),
    Below("bus", 1),
    Below("event", 1),
    Below("state", 1),
    Below("irqchip", 2),
    Only("virtio", 2),
    Below("virtio::mmio", 2),
    Below("virtio::queue", 2),
    Below("virtio::chain", 2),
    Below("virtio::worker", 2),
    Below("virtio::runner", 2),
    Below("virtio::interrupt", 2),
    Apart("virtio::rng", 3),
    Apart("virtio::blk", 3),
    Apart("virtio::net", 3),
    Apart("virtio::console", 3),
    Apart("virtio::balloon", 3),
    Apart("virtio::pmem", 3),
    Apart("virtio::fs", 3),
    Apart("virtio::vsock", 3),
    Apart("serial", 3),
    Apart("rtc", 3),
    Apart("power", 3),
    Below("testing", 4),
    Below("virtio::fs::testing", 4),
    Below("virtio::net::fuzz", 4),
    Below("virtio::net::switch::fuzz", 4),
    Below("virtio::net::testing", 4),
    Below("virtio::vsock::testing", 4),
];

/// The modules of `servin-vmm`. The backends of `hv` are apart from each other.
pub const VMM: &[Module] = &[
    Below("timeline", 3),
    Below("error", 4),
    Below("event", 4),
    Below("layout", 4),
    Below("memory", 4),
    Below("hv", 4),
    Apart("hv::kvm", 4),
    Apart("hv::hvf", 4),
    Apart("hv::whp", 4),
    Apart("hv::fake", 4),
    Below("hv::conformance", 5),
    Below("hv::mutants", 5),
    Below("boot", 5),
    Below("config", 5),
    Below("gate", 5),
    Below("platform", 5),
    Below("snapshot::changes", 5),
    Below("snapshot::early", 5),
    Below("snapshot::format", 5),
    Below("snapshot::memory_file", 5),
    Below("trace", 5),
    Below("vcpu", 5),
    Only("snapshot", 6), // saves a whole VM, is restored by the builder
    Below("written", 6), // asks the hypervisor, for a snapshot
    Below("vm", 6),
    Below("builder", 6),
];

/// What `vmm::hv` may name of `servin-devices`: floor 1 and the logic of interrupt controllers; for its
/// scripts and tests, RAM from `testing`.
pub const HV_USES: &[&str] = &["mem", "irq", "bus", "event", "state", "error", "irqchip", "testing"];

/// What `engine::registry` may name of its crate: names, digests and errors, nothing that keeps or runs anything.
pub const REGISTRY_USES: &[&str] =
    &["Error", "Result", "image::Digest", "image::Hashing", "image::Reference"];

impl Module {
    /// Its path inside the crate.
    pub fn name(self) -> &'static str {
        match self {
            Only(name, _) | Below(name, _) | Apart(name, _) => name,
        }
    }

    /// The floor it stands on, 0 the lowest.
    pub fn floor(self) -> u32 {
        match self {
            Only(_, floor) | Below(_, floor) | Apart(_, floor) => floor,
        }
    }

    /// Whether the module `path` is it, or lives in it.
    pub fn holds(self, path: &str) -> bool {
        path == self.name()
            || (!matches!(self, Only(..))
                && path.strip_prefix(self.name()).is_some_and(|rest| rest.starts_with("::")))
    }
}

/// The entry of `floors` in which the module `path` lives.
pub fn home(floors: &'static [Module], path: &str) -> Option<Module> {
    floors.iter().copied().filter(|module| module.holds(path)).max_by_key(|module| module.name().len())
}

/// The entry that a used path leads to: the longest listed module that it begins with.
pub fn target(floors: &'static [Module], path: &[String]) -> Option<Module> {
    (1..=path.len()).rev().find_map(|length| home(floors, &path[..length].join("::")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::source;

    /// A file's module path inside its crate: `src/virtio/fs/mod.rs` is `virtio::fs`; the crate's root is empty.
    fn module_of(file: &Path, src: &str) -> String {
        let inner = file.strip_prefix(src).unwrap().with_extension("");
        let mut parts: Vec<_> = inner.iter().map(|part| part.to_str().unwrap().to_string()).collect();
        if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            parts.pop();
        }
        parts.join("::")
    }

    fn is_test(file: &Path) -> bool {
        file.iter().any(|part| part == "tests" || part == "tests.rs")
    }

    fn check(src: &str, floors: &'static [Module]) -> Vec<String> {
        let mut wrong = Vec::new();
        for file in source::rust_files(src).iter().filter(|file| !is_test(file)) {
            let module = module_of(file, src);
            if module.is_empty() {
                continue;
            }
            let Some(own) = home(floors, &module) else {
                wrong.push(format!(
                    "{}: `{module}` has no floor: give it one in tests/src/layering.rs",
                    file.display()
                ));
                continue;
            };
            let code = source::product_code(&source::text(file));
            let mut used = source::paths(&code, "crate");
            let segments: Vec<_> = module.split("::").map(str::to_string).collect();
            for up in 1..=segments.len() {
                let prefix = vec!["super"; up].join("::");
                for path in source::paths(&code, &prefix) {
                    let base = &segments[..segments.len() - up];
                    used.push(base.iter().cloned().chain(path).collect());
                }
            }
            for path in used {
                let Some(other) = target(floors, &path) else { continue };
                let apart = matches!(other, Apart(..)) && other.name() != own.name();
                if other.floor() > own.floor() || (other.floor() == own.floor() && apart) {
                    wrong.push(format!(
                        "{}: `{}` (floor {}) uses `{}` of `{}` (floor {})",
                        file.display(),
                        own.name(),
                        own.floor(),
                        path.join("::"),
                        other.name(),
                        other.floor()
                    ));
                }
            }
        }
        wrong
    }

    #[test]
    fn a_crate_depends_only_on_crates_of_lower_floors() {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
            .current_dir(source::root())
            .output()
            .expect("cargo metadata runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("its output is JSON");
        let floor = |name: &str| CRATES.iter().find(|(known, _)| *known == name).map(|(_, floor)| *floor);
        let mut edges = 0;
        for package in metadata["packages"].as_array().expect("packages") {
            let name = package["name"].as_str().expect("a name");
            let own = floor(name).unwrap_or_else(|| panic!("{name} has no floor: give it one in CRATES"));
            for dependency in package["dependencies"].as_array().expect("dependencies") {
                let other = dependency["name"].as_str().expect("a name");
                if dependency["path"].is_null() || other == name {
                    continue;
                }
                let below =
                    floor(other).unwrap_or_else(|| panic!("{other} has no floor: give it one in CRATES"));
                assert!(below < own, "{name} (floor {own}) depends on {other} (floor {below})");
                edges += 1;
            }
        }
        assert!(edges > 5, "only {edges} dependencies were seen: is the metadata read right?");
    }

    #[test]
    fn a_module_of_devices_uses_only_what_is_below_it() {
        let wrong = check("devices/src", DEVICES);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_module_of_vmm_uses_only_what_is_below_it() {
        let wrong = check("vmm/src", VMM);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn hypervisor_backends_use_only_the_contracts_of_devices() {
        let mut wrong = Vec::new();
        for file in source::rust_files("vmm/src/hv").iter().filter(|file| !is_test(file)) {
            let code = source::product_code(&source::text(file));
            for path in source::paths(&code, "servin_devices") {
                if !path.first().is_some_and(|first| HV_USES.contains(&first.as_str())) {
                    wrong.push(format!("{}: servin_devices::{}", file.display(), path.join("::")));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn the_client_of_registries_knows_no_store() {
        let mut wrong = Vec::new();
        for file in source::rust_files("engine/src/registry") {
            if is_test(&file) || file.iter().any(|part| part == "testing") {
                continue;
            }
            let code = source::product_code(&source::text(&file));
            for path in source::paths(&code, "crate") {
                let path = path.join("::");
                if !REGISTRY_USES
                    .iter()
                    .any(|known| path == *known || path.starts_with(&format!("{known}::")))
                {
                    wrong.push(format!("{}: crate::{path}", file.display()));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn devices_name_no_hypervisor() {
        let mut wrong = Vec::new();
        for file in source::rust_files("devices/src") {
            let code = source::code(&source::text(&file)).to_lowercase();
            for name in ["kvm_ioctls", "kvm_bindings", "servin_vmm", "applevisor", "libwhp"] {
                if code.contains(name) {
                    wrong.push(format!("{}: {name}", file.display()));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_use_of_a_higher_floor_is_seen() {
        let path = |text: &str| text.split("::").map(str::to_string).collect::<Vec<_>>();
        assert_eq!(home(DEVICES, "virtio::fs::server").map(Module::floor), Some(3));
        assert_eq!(home(DEVICES, "virtio").map(Module::floor), Some(2));
        assert!(home(DEVICES, "virtio::new").is_none());
        assert_eq!(target(DEVICES, &path("virtio::VirtioDevice")).map(Module::floor), Some(2));
        assert_eq!(target(DEVICES, &path("testing::Rig")).map(Module::floor), Some(4));
        assert!(target(DEVICES, &path("Error")).is_none());
    }
}
