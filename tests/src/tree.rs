//! Rules about the tree's files: how long they are, where `unsafe` stands, which words never appear.

/// The longest a Rust file may be, tests included.
pub const MOST_LINES: usize = 900;

/// Files and folders that may hold `unsafe`, with the reason. Each such file also says why at its top.
pub const UNSAFE: &[(&str, &str)] = &[
    ("devices/src/mem/unix.rs", "guest memory is mapped and handed to the kernel"),
    ("devices/src/event", "descriptors and sockets are watched and adopted"),
    (
        "devices/src/os/windows.rs",
        "random bytes, resolvers, addresses go by pointer, and a socket is a handle",
    ),
    ("devices/src/lock.rs", "fcntl takes a lock by pointer"),
    ("devices/src/virtio/fs/host/by_name/macos/calls.rs", "fcntl takes what to reserve by pointer"),
    ("devices/src/virtio/fs/host/windows/calls.rs", "names and what is asked of files go by pointer"),
    ("vmm/src/hv/kvm", "ioctls that take pointers, and the run page"),
    ("vmm/src/hv/hvf/ffi.rs", "Hypervisor.framework is C"),
    ("vmm/src/hv/hvf/vmx/ffi.rs", "Hypervisor.framework is C, and undeclared for Intel processors"),
    ("vmm/src/hv/whp/ffi.rs", "WinHvPlatform.dll is loaded and called"),
    ("vmm/src/memory/unix.rs", "guest memory is mapped and advised"),
    ("vmm/src/hv/conformance", "the guest programs are read from between assembler labels"),
    ("engine/src/process", "the monitor process is forked, and told its signals"),
    ("engine/src/os/macos.rs", "the system is asked by pointer"),
    ("engine/src/network/tap/linux.rs", "an ioctl takes the tap's name by pointer"),
    ("initramfs/agent/src/rt", "PID 1 is freestanding: its runtime is its own"),
    ("initramfs/agent/src/sys.rs", "and so is every system call"),
    ("initramfs/agent/src/sys", "of each architecture"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source;

    #[test]
    fn no_rust_file_is_longer_than_the_limit() {
        let files = source::rust_files("");
        assert!(files.len() > 10, "only {} files were found", files.len());
        let long: Vec<_> = files
            .iter()
            .map(|file| (file, source::text(file).lines().count()))
            .filter(|(_, lines)| *lines > MOST_LINES)
            .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
            .collect();
        assert!(long.is_empty(), "{}", long.join("\n"));
    }

    #[test]
    fn unsafe_stands_only_in_the_named_leaves() {
        let mut wrong = Vec::new();
        for file in source::rust_files("") {
            let named = UNSAFE.iter().any(|(path, _)| file.starts_with(path));
            let source = source::text(&file);
            let code = source::code(&source);
            let lines = source::lines_with_word(&code, "unsafe");
            if named {
                if !lines.is_empty() && !code.contains("allow(unsafe_code)") {
                    wrong.push(format!("{}: no #![allow(unsafe_code)] with a reason", file.display()));
                }
            } else {
                wrong.extend(
                    lines.iter().map(|line| format!("{}:{line}: unsafe outside the leaves", file.display())),
                );
                if code.contains("allow(unsafe_code)") {
                    wrong.push(format!("{}: allows unsafe_code and is not a named leaf", file.display()));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn no_file_names_a_folder_of_one_machine() {
        // Written in pieces, so that this file does not name them either.
        let folders = [
            ["/wo", "rk/"],
            ["/tm", "p/w/"],
            ["/ro", "ot/.cargo"],
            ["/ro", "ot/.cache"],
            ["/ho", "me/runner"],
        ];
        let mut wrong = Vec::new();
        for file in source::files("") {
            let text = source::text(&file);
            for (number, line) in text.lines().enumerate() {
                for folder in folders.map(|parts| parts.concat()) {
                    let starts_there = |at: usize| {
                        line[..at]
                            .chars()
                            .next_back()
                            .is_none_or(|c| c.is_whitespace() || "\"'`(=:<,@".contains(c))
                    };
                    if line.match_indices(&folder).any(|(at, _)| starts_there(at)) {
                        wrong.push(format!("{}:{}: {folder}", file.display(), number + 1));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
