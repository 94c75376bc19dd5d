//! Who a program runs as: `--user` looked up in the container's /etc/passwd and /etc/group.

use alloc::{format, string::String, vec::Vec};

/// Numbers and home of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Vec<u8>,
}

/// A line of /etc/passwd: name, password, uid, gid, comment, home, shell.
struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// A line of /etc/group: name, password, gid, members.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

fn number(text: &[u8]) -> Option<u32> {
    core::str::from_utf8(text).ok()?.parse().ok()
}

fn users(passwd: &[u8]) -> impl Iterator<Item = User<'_>> {
    passwd.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or_default();
        Some(User { name, uid: number(uid)?, gid: number(gid)?, home })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    group.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Group { name, gid: number(gid)?, members: fields.next().unwrap_or_default() })
    })
}

/// Looks up `user[:group]`, each a name or a number; empty is root. The rules are docker's: a name that is in the
/// file wins over a number; a number need not be in the file; supplementary groups are those that list the user,
/// unless a group was given.
pub(crate) fn look_up(spec: &str, passwd: &[u8], group: &[u8]) -> Result<Identity, String> {
    let (wanted, wanted_group) = spec.split_once(':').unwrap_or((spec, ""));
    let wanted = if wanted.is_empty() { "0" } else { wanted };
    let as_number = number(wanted.as_bytes());
    let found = users(passwd).find(|user| user.name == wanted.as_bytes() || Some(user.uid) == as_number);
    let mut identity = match (&found, as_number) {
        (Some(user), _) => {
            Identity { uid: user.uid, gid: user.gid, groups: Vec::new(), home: user.home.to_vec() }
        }
        (None, Some(uid)) => Identity { uid, gid: 0, groups: Vec::new(), home: Vec::new() },
        (None, None) => return Err(format!("no user {wanted:?} in the container's /etc/passwd")),
    };
    if identity.home.is_empty() {
        identity.home = b"/".to_vec();
    }
    if wanted_group.is_empty() {
        if let Some(user) = found {
            identity.groups = groups(group)
                .filter(|group| group.members.split(|byte| *byte == b',').any(|name| name == user.name))
                .map(|group| group.gid)
                .collect();
        }
    } else {
        identity.gid = self::group(wanted_group, group)?;
    }
    Ok(identity)
}

/// Looks up a group by name or number, which need not be in the file.
pub(crate) fn group(wanted: &str, group: &[u8]) -> Result<u32, String> {
    let as_number = number(wanted.as_bytes());
    groups(group)
        .find(|group| group.name == wanted.as_bytes() || Some(group.gid) == as_number)
        .map(|group| group.gid)
        .or(as_number)
        .ok_or_else(|| format!("no group {wanted:?} in the container's /etc/group"))
}

#[cfg(test)]
mod tests {
    use super::{Identity, look_up};

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x:one\n\
        www:x:33:33:www:/var/www:/sbin/nologin\n1000:x:7:8::/odd:/bin/sh\nbare:x:5:6";
    const GROUP: &[u8] = b"root:x:0:\nadm:x:4:syslog,www\nwww:x:33:\nvideo:x:44:root,www\nnotwww:x:45:wwww\n";

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Result<Identity, String> {
        Ok(Identity { uid, gid, groups: groups.to_vec(), home: home.as_bytes().to_vec() })
    }

    fn find(spec: &str) -> Result<Identity, String> {
        look_up(spec, PASSWD, GROUP)
    }

    #[test]
    fn nobody_named_is_root_with_its_groups() {
        assert_eq!(find(""), identity(0, 0, &[44], "/root"));
        assert_eq!(find("0"), find(""));
    }

    #[test]
    fn a_name_brings_group_supplementary_groups_and_home() {
        assert_eq!(find("www"), identity(33, 33, &[4, 44], "/var/www"));
        assert_eq!(find("33"), find("www"));
        assert_eq!(find("bare"), identity(5, 6, &[], "/"));
    }

    #[test]
    fn a_given_group_replaces_all_groups() {
        assert_eq!(find("www:adm"), identity(33, 4, &[], "/var/www"));
        assert_eq!(find("www:99"), identity(33, 99, &[], "/var/www"));
        assert_eq!(find(":adm"), identity(0, 4, &[], "/root"));
    }

    #[test]
    fn a_number_need_not_be_in_the_files() {
        assert_eq!(find("4711"), identity(4711, 0, &[], "/"));
        assert_eq!(find("4711:4712"), identity(4711, 4712, &[], "/"));
        assert_eq!(look_up("", b"", b""), identity(0, 0, &[], "/"));
    }

    #[test]
    fn a_name_made_of_digits_wins_over_the_number() {
        assert_eq!(find("1000"), identity(7, 8, &[], "/odd"));
    }

    #[test]
    fn an_unknown_name_is_named_in_the_error() {
        assert!(find("nobody").unwrap_err().contains("\"nobody\""));
        assert!(find("www:wheel").unwrap_err().contains("\"wheel\""));
        assert!(find("-1").is_err());
        assert!(find("4294967296").is_err());
    }
}
