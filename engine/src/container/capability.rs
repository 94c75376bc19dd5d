//! Capabilities by name, as Linux numbers them (capabilities(7)).

use servin_init::proto::{Capabilities, DEFAULT_CAPABILITIES};

/// Names by number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// The word for all of them.
const ALL: &str = "ALL";

/// Every capability.
pub(crate) const EVERY: Capabilities = Capabilities((1 << NAMES.len()) - 1);

/// The name as docker prints it, `CAP_CHOWN` or `ALL`, of one written with `CAP_` or without in any case.
pub fn canonical(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    match name {
        ALL => Ok(ALL.to_owned()),
        _ if NAMES.contains(&name) => Ok(format!("CAP_{name}")),
        _ => Err("it is a capability as capabilities(7) names them, or ALL".into()),
    }
}

/// What a container has that adds and drops these, by docker's rules: dropping all leaves what is added, adding all leaves
/// out what is dropped.
pub(crate) fn set(add: &[String], drop: &[String]) -> Capabilities {
    let bits = |list: &[String]| list.iter().map(|name| bits(name)).fold(0, |all, bits| all | bits);
    let has_all = |list: &[String]| list.iter().any(|name| name == ALL);
    Capabilities(if has_all(add) {
        EVERY.0 & !bits(&drop.iter().filter(|name| *name != ALL).cloned().collect::<Vec<_>>())
    } else if has_all(drop) {
        bits(add)
    } else {
        DEFAULT_CAPABILITIES.0 & !bits(drop) | bits(add)
    })
}

fn bits(name: &str) -> u64 {
    if name == ALL {
        return EVERY.0;
    }
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    NAMES.iter().position(|known| *known == name).map_or(0, |number| 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(add: &[&str], drop: &[&str]) -> u64 {
        let list = |words: &[&str]| words.iter().map(|word| canonical(word).unwrap()).collect::<Vec<_>>();
        set(&list(add), &list(drop)).0
    }

    #[test]
    fn names_are_taken_in_any_form_and_unknown_ones_refused() {
        for text in ["net_admin", "CAP_NET_ADMIN", "NET_ADMIN", "cap_net_admin"] {
            assert_eq!(canonical(text).as_deref(), Ok("CAP_NET_ADMIN"));
        }
        assert_eq!(canonical("all").as_deref(), Ok("ALL"));
        assert!(canonical("fly").is_err());
    }

    #[test]
    fn adding_and_dropping_follow_dockers_rules() {
        assert_eq!(of(&[], &[]), 0xa804_25fb);
        assert_eq!(of(&["NET_ADMIN"], &[]), 0xa804_25fb | 1 << 12);
        assert_eq!(of(&[], &["CHOWN"]), 0xa804_25fa);
        assert_eq!(of(&["CHOWN"], &["ALL"]), 1);
        assert_eq!(of(&[], &["ALL"]), 0);
        assert_eq!(of(&["ALL"], &[]), 0x1ff_ffff_ffff);
        assert_eq!(of(&["ALL"], &["CHOWN"]), 0x1ff_ffff_fffe);
    }
}
