//! A program's environment, and where its file may be.

use alloc::{borrow::ToOwned as _, ffi::CString, vec, vec::Vec};

use servin_init::proto::Exec;

use crate::boot::c_path;

/// Searched if the environment has no `PATH`, and the value that it then gets.
const PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn value<'a>(env: &'a [Vec<u8>], name: &[u8]) -> Option<&'a [u8]> {
    env.iter().rev().find_map(|var| var.strip_prefix(name)?.strip_prefix(b"="))
}

/// The variables of `exec`, and those that every program expects if they are not among them.
pub(crate) fn complete(exec: &Exec, hostname: &str, home: &[u8]) -> Vec<CString> {
    let terminal: &[u8] = if exec.terminal.is_some() { b"xterm" } else { b"" };
    let defaults: [(&[u8], &[u8]); 4] =
        [(b"PATH", PATH), (b"HOSTNAME", hostname.as_bytes()), (b"TERM", terminal), (b"HOME", home)];
    let added = defaults
        .into_iter()
        .filter(|(name, default)| !default.is_empty() && value(&exec.env, name).is_none())
        .map(|(name, default)| c_path(&[name, b"=", default].concat()));
    let mut env: Vec<CString> = added.collect();
    env.extend(exec.env.iter().map(|var| c_path(var)));
    env
}

/// The files that `program` may be, in the order of the search.
pub(crate) fn candidates(program: &[u8], env: &[Vec<u8>]) -> Vec<CString> {
    if program.contains(&b'/') {
        return vec![c_path(program)];
    }
    value(env, b"PATH")
        .unwrap_or(PATH)
        .split(|byte| *byte == b':')
        .map(|directory| {
            let mut path = if directory.is_empty() { b".".to_vec() } else { directory.to_owned() };
            path.push(b'/');
            path.extend_from_slice(program);
            c_path(&path)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{candidates, complete};
    use servin_init::proto::{Exec, WindowSize};

    fn strings(list: Vec<std::ffi::CString>) -> Vec<String> {
        list.into_iter().map(|s| s.into_string().unwrap()).collect()
    }

    #[test]
    fn defaults_come_first_and_only_where_nothing_is_set() {
        let env = vec![b"HOME=/h".to_vec(), b"A=1".to_vec(), b"PATHS=x".to_vec()];
        let exec = Exec { env, ..Exec::default() };
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        assert_eq!(
            strings(complete(&exec, "box", b"/root")),
            [path, "HOSTNAME=box", "HOME=/h", "A=1", "PATHS=x"]
        );
        let exec = Exec { terminal: Some(WindowSize::default()), ..Exec::default() };
        assert_eq!(strings(complete(&exec, "", b"/root")), [path, "TERM=xterm", "HOME=/root"]);
    }

    #[test]
    fn a_program_is_searched_in_its_own_path() {
        let env = [b"PATH=/a::/b/".to_vec()];
        assert_eq!(strings(candidates(b"sh", &env)), ["/a/sh", "./sh", "/b//sh"]);
        assert_eq!(strings(candidates(b"bin/sh", &env)), ["bin/sh"]);
        assert_eq!(candidates(b"sh", &[]).len(), 6);
    }

    #[test]
    fn an_empty_path_searches_the_working_directory_only() {
        assert_eq!(strings(candidates(b"sh", &[b"PATH=".to_vec()])), ["./sh"]);
    }
}
