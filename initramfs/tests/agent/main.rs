//! The agent, driven over its protocol. As root; without, each test says why it is skipped.

mod files;
mod harness;
mod limits;
mod networks;
mod still;

use std::fs;

use harness::{Guest, command, sh, skipped_without};
use servin_init::proto::*;

fn guest() -> Guest {
    Guest::configured(Configure::default())
}

fn run(exec: Exec) -> harness::Outcome {
    guest().run(exec)
}

macro_rules! root_tests {
    ($($(#[$meta:meta])* fn $name:ident() $body:block)*) => {
        $(#[test] $(#[$meta])* fn $name() {
            if !crate::harness::skipped() $body
        })*
    };
}
pub(crate) use root_tests;

root_tests! {
    fn a_program_prints_exactly_its_output() {
        let outcome = run(command(&["echo", "hi"]));
        assert_eq!((outcome.text(), &outcome.stderr[..], outcome.code), ("hi\n", &b""[..], 0));
    }

    fn standard_output_and_error_stay_apart() {
        let outcome = run(sh("echo out; echo err >&2"));
        assert_eq!((outcome.text(), &outcome.stderr[..]), ("out\n", &b"err\n"[..]));
    }

    fn exit_codes_are_the_programs_own() {
        for code in [0, 7, 125, 255] {
            assert_eq!(run(sh(&format!("exit {code}"))).code, code);
        }
    }

    fn the_main_program_is_pid_1_and_deaf_to_its_own_kill() {
        let outcome = run(sh("kill -9 $$; echo $$ still here"));
        assert_eq!(outcome.text(), "1 still here\n");
    }

    fn arguments_arrive_byte_for_byte() {
        let long = "x".repeat(100_000);
        let mut exec = command(&["sh", "-c", "echo ${#1}; echo \"$2\"", "sh", &long, "a  b\n'\"$"]);
        exec.argv.push(vec![0xff]);
        assert_eq!(run(exec).text(), "100000\na  b\n'\"$\n");
    }

    fn a_missing_program_is_enoent_and_one_without_permission_eacces() {
        let refused = |exec: Exec| {
            let mut guest = guest();
            guest.exec(exec);
            match guest.control.message() {
                Some(GuestMessage::ExecFailed { stage, errno, .. }) => (stage, errno),
                other => panic!("{other:?}"),
            }
        };
        let (enoent, enoexec, eacces) = (2, 8, 13);
        assert_eq!(refused(command(&["nope"])), (Stage::Program, enoent));
        assert_eq!(refused(command(&["/bin/nope"])), (Stage::Program, enoent));
        assert_eq!(refused(command(&["/etc/plain"])), (Stage::Program, eacces));
        assert_eq!(refused(command(&["/etc"])), (Stage::Program, eacces));
        assert_eq!(refused(command(&["/etc/script"])), (Stage::Program, enoexec));
        assert_eq!(
            refused(Exec { cwd: b"/nope".to_vec(), ..sh("true") }),
            (Stage::WorkingDirectory, enoent)
        );
    }

    fn requests_that_make_no_sense_are_refused_and_the_agent_goes_on() {
        let mut guest = Guest::boot(Upper::Tmpfs);
        let refusal = |guest: &mut Guest, exec| {
            guest.control.send(&HostMessage::Exec(exec));
            match guest.control.message() {
                Some(GuestMessage::ExecFailed { stage: Stage::Request, message, .. }) => message,
                other => panic!("{other:?}"),
            }
        };
        assert!(refusal(&mut guest, sh("true")).contains("configured"));
        guest.configure(Configure::default());
        assert!(refusal(&mut guest, Exec::default()).contains("no program"));
        assert!(refusal(&mut guest, Exec { main: false, ..sh("true") }).contains("no main program"));
        let main = guest.start(Exec { stdin: true, ..command(&["cat"]) });
        assert!(refusal(&mut guest, Exec { id: main.id, main: false, ..sh("true") }).contains("id"));
        assert!(refusal(&mut guest, Exec { id: 99, ..sh("true") }).contains("already"));
    }

    fn input_is_passed_on_and_ends() {
        let mut guest = guest();
        let mut cat = guest.start(Exec { stdin: true, ..command(&["cat"]) });
        cat.input(b"one");
        cat.read_until("one");
        cat.input(b" two");
        cat.end_input();
        let outcome = guest.wait(cat);
        assert_eq!((outcome.text(), outcome.code), ("one two", 0));
    }

    fn a_half_closed_stream_is_the_end_of_input_too() {
        let mut guest = guest();
        let mut cat = guest.start(Exec { stdin: true, ..command(&["cat"]) });
        cat.input(b"all");
        cat.stream.socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(guest.wait(cat).text(), "all");
    }

    fn without_input_there_is_nothing_to_read() {
        assert_eq!(run(sh("cat; echo done")).text(), "done\n");
    }

    fn input_that_nobody_reads_is_thrown_away() {
        let mut guest = guest();
        let mut program = guest.start(Exec { stdin: true, ..sh("exec <&-; echo closed; read x </proc/self/fd/9; sleep 1000") });
        program.read_until("closed");
        program.input(&vec![0; 1 << 20]);
        guest.control.send(&HostMessage::Signal { id: program.id, signal: 9 });
        assert_eq!(guest.wait(program).code, 137);
    }

    fn twenty_megabytes_go_in_and_come_out_unchanged() {
        let mut guest = guest();
        let data: Vec<u8> = (0..20_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let mut cat = guest.start(Exec { stdin: true, ..command(&["cat"]) });
        let mut writer = cat.stream.socket.try_clone().unwrap();
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                use std::io::Write as _;
                for chunk in data.chunks(MAX_DATA) {
                    writer.write_all(&StreamMessage::Stdin(chunk).to_frame().unwrap()).unwrap();
                }
                writer.write_all(&StreamMessage::StdinEof.to_frame().unwrap()).unwrap();
            });
            cat.read_to_end();
            guest.exit(cat.id);
            cat.output
        });
        assert!(outcome.stdout == data, "{} bytes came back", outcome.stdout.len());
    }

    fn thirty_megabytes_wait_for_a_slow_reader() {
        let mut guest = guest();
        let program = guest.start(sh("dd if=/dev/zero bs=65536 count=480 2>/dev/null; echo end"));
        // The agent still answers while the stream stands still.
        guest.control.send(&HostMessage::Sync { token: 1 });
        assert_eq!(guest.control.message(), Some(GuestMessage::Synced { token: 1 }));
        let outcome = guest.wait(program);
        assert_eq!(outcome.stdout.len(), 480 * 65536 + 4);
        assert!(outcome.stdout.ends_with(b"\0end\n"));
    }

    fn a_reader_that_leaves_is_a_broken_pipe() {
        let mut guest = guest();
        let yes = guest.start(command(&["yes"]));
        let id = yes.id;
        drop(yes);
        const SIGPIPE: u8 = 13;
        let (status, _) = guest.exit(id);
        // PID 1 without a handler does not die of SIGPIPE; it sees EPIPE then, and busybox exits with 1.
        assert!(matches!(status, ExitStatus::Signal(SIGPIPE) | ExitStatus::Code(1)), "{status:?}");
    }

    fn an_output_that_the_host_closes_is_broken_and_the_other_goes_on() {
        let mut guest = guest();
        let mut program = guest.start(sh("yes; echo yes ended with $? >&2"));
        program.read_until("y");
        program.stream.send(&StreamMessage::CloseStdout);
        let outcome = guest.wait(program);
        // yes is not PID 1, so the signal kills it.
        assert_eq!(String::from_utf8_lossy(&outcome.stderr), "yes ended with 141\n");
    }

    fn signals_reach_the_program_and_show_in_its_status() {
        let mut guest = guest();
        let mut program = guest.start(sh("trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 1000 & wait $!; done"));
        program.read_until("ready");
        guest.control.send(&HostMessage::Signal { id: program.id, signal: 15 });
        let outcome = guest.wait(program);
        assert_eq!((outcome.text(), outcome.code), ("ready\nterm\n", 3));
    }

    fn a_terminal_has_its_size_and_follows_changes() {
        let mut guest = guest();
        let terminal = Some(WindowSize { rows: 33, cols: 111 });
        let mut program = guest.start(Exec {
            terminal,
            stdin: true,
            ..sh("stty size; echo $TERM; test -t 0 && test -t 1 && test -t 2 && test -c /dev/console && echo tty; \
                trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 1000 & wait $!; done")
        });
        program.read_until("ready");
        let size = WindowSize { rows: 44, cols: 55 };
        guest.control.send(&HostMessage::Resize { id: program.id, size });
        let outcome = guest.wait(program);
        assert_eq!(outcome.text(), "33 111\r\nxterm\r\ntty\r\nready\r\n44 55\r\n");
        assert_eq!(outcome.code, 5);
    }

    fn a_terminal_turns_control_c_into_a_signal_and_the_end_of_input_into_its_character() {
        let mut guest = guest();
        let terminal = Some(WindowSize { rows: 24, cols: 80 });
        let mut program = guest.start(Exec {
            terminal,
            stdin: true,
            ..sh("stty -echo; trap 'echo int' INT; echo ready; cat; cat; echo ended")
        });
        program.read_until("ready");
        // What comes back shows that the first cat runs, and is what the signal ends.
        program.input(b"one\n");
        program.read_until("one");
        program.input(b"\x03");
        program.read_until("int");
        program.input(b"two\n");
        program.read_until("two");
        program.end_input();
        let outcome = guest.wait(program);
        assert_eq!(outcome.text(), "ready\r\none\r\nint\r\ntwo\r\nended\r\n");
    }

    fn users_are_looked_up_in_the_container() {
        let id = |user: &str| run(Exec { user: user.into(), ..sh("id; echo $HOME") }).text().to_owned();
        assert_eq!(id("www"), "uid=33(www) gid=34(www) groups=35(extra)\n/var/www\n");
        assert_eq!(id("4711:35"), "uid=4711 gid=35(extra)\n/\n");
        assert_eq!(id(""), "uid=0(root) gid=0(root)\n/root\n");
        let mut guest = guest();
        guest.exec(Exec { user: "nobody".into(), ..sh("true") });
        let Some(GuestMessage::ExecFailed { stage: Stage::User, message, .. }) = guest.control.message() else {
            panic!("an unknown user was accepted")
        };
        assert!(message.contains("\"nobody\""), "{message}");
    }

    fn a_user_can_reopen_its_own_output() {
        let outcome = run(Exec { user: "www".into(), ..sh("echo again > /dev/stdout") });
        assert_eq!(outcome.text(), "again\n");
    }

    fn capabilities_are_bounded_and_no_new_privileges_set() {
        let show = sh("grep -E 'Cap(Prm|Eff|Bnd|Inh)|NoNewPrivs' /proc/self/status");
        let outcome = run(show.clone());
        assert_eq!(
            outcome.text(),
            "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n\
             CapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\n"
        );
        let exec = Exec { capabilities: Capabilities(1 << 10), no_new_privileges: true, user: "www".into(), ..show };
        assert_eq!(
            run(exec).text(),
            "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
             CapBnd:\t0000000000000400\nNoNewPrivs:\t1\n"
        );
    }

    fn resource_limits_are_set() {
        let rlimits = vec![Rlimit { resource: 7, soft: 100, hard: 200 }];
        let outcome = run(Exec { rlimits, ..sh("ulimit -Sn; ulimit -Hn") });
        assert_eq!(outcome.text(), "100\n200\n");
    }

    fn the_working_directory_is_entered_and_made_if_asked() {
        assert_eq!(run(Exec { cwd: b"/tmp".to_vec(), ..sh("pwd") }).text(), "/tmp\n");
        let exec = Exec { cwd: b"/srv/a/b".to_vec(), create_cwd: true, user: "www".into(), ..sh("pwd; stat -c %u:%a .") };
        assert_eq!(run(exec).text(), "/srv/a/b\n0:755\n");
    }

    fn changes_stay_in_the_guest_and_do_not_reach_the_image() {
        let mut guest = guest();
        let outcome = guest.run(sh("echo new > /etc/plain; rm /etc/script; mv /etc /etc2; cat /etc2/plain; ls /etc2"));
        assert_eq!(outcome.text(), "new\ngroup\npasswd\nplain\n", "{:?}", String::from_utf8_lossy(&outcome.stderr));
        assert_eq!(fs::read_to_string(guest.image().join("etc/plain")).unwrap(), "not a program\n");
        assert!(guest.image().join("etc/script").exists());
    }

    fn a_read_only_root_cannot_be_written_but_its_own_mounts_can() {
        let mount = Mount {
            source: MountSource::Tmpfs { size: Some(1 << 20), mode: 0o1777 },
            target: b"/var/cache/mine".to_vec(),
            read_only: false,
            no_exec: true,
            no_suid: true,
            no_dev: true,
        };
        let mut guest = Guest::configured(Configure {
            hostname: "box".into(),
            read_only: true,
            mounts: vec![mount],
            ..Configure::default()
        });
        let outcome = guest.run(sh(
            "touch /x 2>&1; touch /var/cache/mine/x /dev/shm/x && cat /etc/hostname; grep mine /proc/mounts"
        ));
        assert_eq!(
            outcome.text(),
            "touch: /x: Read-only file system\nbox\n\
             tmpfs /var/cache/mine tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k 0 0\n"
        );
    }

    fn without_an_upper_layer_the_root_is_the_image_itself() {
        let mut guest = Guest::boot(Upper::None);
        guest.configure(Configure { hosts: Some(b"1.2.3.4 x\n".to_vec()), ..Configure::default() });
        let outcome = guest.run(sh("touch /x 2>&1; ls /dev/null /etc"));
        assert_eq!(
            outcome.text(),
            "touch: /x: Read-only file system\n/dev/null\n\n/etc:\ngroup\npasswd\nplain\nscript\n"
        );
    }

    fn names_and_files_of_the_host_are_in_place() {
        let mut guest = Guest::configured(Configure {
            hostname: "box".into(),
            hosts: Some(b"127.0.0.1 localhost box\n".to_vec()),
            resolv_conf: Some(b"nameserver 10.0.2.3\n".to_vec()),
            entropy: vec![0x5a; 32],
            ..Configure::default()
        });
        let outcome = guest.run(sh("hostname; echo $HOSTNAME; cat /etc/hostname /etc/hosts /etc/resolv.conf"));
        assert_eq!(outcome.text(), "box\nbox\nbox\n127.0.0.1 localhost box\nnameserver 10.0.2.3\n");
    }

    fn a_machine_id_replaces_those_that_are_there_and_makes_none() {
        let mut guest = Guest::boot(Upper::Tmpfs);
        let dbus = guest.image().join("var/lib/dbus");
        fs::create_dir_all(&dbus).unwrap();
        fs::write(dbus.join("machine-id"), "the image's\n").unwrap();
        guest.configure(Configure { machine_id: Some(b"own\n".to_vec()), ..Configure::default() });
        let outcome = guest.run(sh("cat /var/lib/dbus/machine-id; ls /etc/machine-id 2>&1"));
        assert_eq!(outcome.text(), "own\nls: /etc/machine-id: No such file or directory\n");
    }

    fn the_usual_devices_and_file_systems_are_there() {
        let mut guest = Guest::configured(Configure { shm_size: Some(1 << 20), ..Configure::default() });
        let outcome = guest.run(sh(
            "for f in null zero full random urandom tty fd stdin stdout stderr ptmx pts/ptmx shm mqueue; \
             do test -e /dev/$f || test -L /dev/$f || echo missing $f; done; stat -c %a:%t:%T /dev/null; \
             while read a b c d; do case $b in /proc|/sys|/dev|/dev/pts|/dev/shm|/dev/mqueue|/proc/sys) echo $b $c;; esac; done < /proc/mounts; \
             echo 1 2>&1 > /proc/sys/kernel/panic"
        ));
        let text = outcome.text();
        assert!(text.starts_with("666:1:3\n"), "{text}");
        for line in ["/sys sysfs", "/dev tmpfs", "/dev/pts devpts", "/dev/mqueue mqueue", "/dev/shm tmpfs", "/proc proc"] {
            assert!(text.contains(line), "{line} is missing:\n{text}");
        }
        assert!(text.ends_with("/proc/sys/kernel/panic: Read-only file system\n"), "{text}");
    }

    fn limits_are_seen_in_the_container_whose_cgroup_is_its_root() {
        if skipped_without(&["memory", "pids", "cpu"]) {
            return;
        }
        let mut guest = Guest::configured(Configure {
            limits: Limits {
                memory_max: Some(64 << 20),
                pids_max: Some(50),
                cpu: Some(CpuLimit { quota_us: 50_000, period_us: 100_000 }),
                files: vec![("memory.low".into(), "4096".into())],
            },
            ..Configure::default()
        });
        let outcome = guest.run(sh("cat /proc/self/cgroup; cd /sys/fs/cgroup; cat memory.max pids.max cpu.max memory.low; \
            echo 1 2>&1 > memory.max"));
        let text = outcome.text();
        assert!(text.contains("0::/\n67108864\n50\n50000 100000\n4096\n"), "{text}");
        assert!(text.ends_with("Read-only file system\n"), "{text}");
    }

    fn too_many_processes_cannot_be_made() {
        if skipped_without(&["pids"]) {
            return;
        }
        let limits = Limits { pids_max: Some(5), ..Limits::default() };
        let mut guest = Guest::configured(Configure { limits, ..Configure::default() });
        let outcome = guest.run(sh("for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all"));
        assert!(!outcome.text().contains("all"), "{}", outcome.text());
        assert!(String::from_utf8_lossy(&outcome.stderr).contains("can't fork"), "{outcome:?}");
    }

    fn too_much_memory_is_a_kill_that_is_told_as_such() {
        if skipped_without(&["memory"]) {
            return;
        }
        let limits = Limits { memory_max: Some(16 << 20), ..Limits::default() };
        let mut guest = Guest::configured(Configure { limits, ..Configure::default() });
        let mut program = guest.start(sh("x=0123456789abcdef; while :; do x=$x$x; done"));
        program.read_to_end();
        assert_eq!(guest.exit(program.id), (ExitStatus::Signal(9), true));
    }

    fn more_programs_join_the_container_and_end_on_their_own() {
        let mut guest = guest();
        let mut main = guest.start(Exec { stdin: true, ..sh("echo up; read x; echo $x") });
        main.read_until("up");
        for code in 3..6 {
            let exec = Exec { main: false, ..sh(&format!("kill -0 1 && test $$ -gt 1 && cat /proc/1/comm; exit {code}")) };
            let outcome = guest.run(exec);
            assert_eq!((outcome.text(), outcome.code), ("sh\n", code));
        }
        main.input(b"bye\n");
        assert_eq!(guest.wait(main).text(), "up\nbye\n");
    }

    fn a_grandchild_that_keeps_the_output_does_not_keep_the_exit() {
        let mut guest = guest();
        let mut main = guest.start(sh("echo up; sleep 1000"));
        main.read_until("up");
        let outcome = guest.run(Exec { main: false, ..sh("sleep 1000 & echo done") });
        assert_eq!((outcome.text(), outcome.code), ("done\n", 0));
    }

    fn the_end_of_the_main_program_is_the_end_of_all() {
        let mut guest = guest();
        let mut main = guest.start(Exec { stdin: true, ..sh("echo up; read x; sleep 1000 & echo last; exit 9") });
        main.read_until("up");
        let mut other = guest.start(Exec { main: false, ..sh("echo up; sleep 1000") });
        other.read_until("up");
        main.input(b"\n");
        main.read_to_end();
        other.read_to_end();
        let mut exits = std::collections::BTreeMap::new();
        for _ in 0..2 {
            match guest.control.message() {
                Some(GuestMessage::Exited { id, status, .. }) => exits.insert(id, status),
                other => panic!("{other:?}"),
            };
        }
        assert_eq!(exits[&main.id], ExitStatus::Code(9));
        assert_eq!(exits[&other.id], ExitStatus::Signal(9));
        assert_eq!(main.output.stdout, b"up\nlast\n");
    }

    fn shutdown_kills_what_runs_and_ends_the_machine() {
        let mut guest = guest();
        let mut program = guest.start(sh("trap '' TERM; echo up; sleep 1000"));
        program.read_until("up");
        guest.control.send(&HostMessage::Shutdown);
        guest.ends();
    }

    fn an_idle_agent_connects_again_after_a_reset() {
        let mut guest = guest();
        for generation in 1..3 {
            guest.reconnect();
            guest.hello(generation);
        }
        guest.configure(Configure { hostname: "clone".into(), ..Configure::default() });
        assert_eq!(guest.run(sh("hostname")).text(), "clone\n");
    }

    fn a_prepared_container_is_like_any_other_once_it_is_configured() {
        let asked = Configure {
            hostname: "clone".into(),
            hosts: Some(b"127.0.0.1 here\n".to_vec()),
            shm_size: Some(8 << 20),
            ..Configure::default()
        };
        let script = sh("hostname; cat /etc/hostname /etc/hosts; echo pid $$; ls /proc/self/fd; grep Cap /proc/self/status; \
            grep -c . /proc/self/mounts; grep shm /proc/self/mounts; cat /proc/self/cgroup; echo x >/proc/sys/kernel/hostname; \
            exec 3</etc/passwd && stat -c %i /proc/self/ns/pid >/dev/null && echo /proc/[0-9]*; cat /proc/self/stat | cut -d' ' -f5,6");
        let mut plain = Guest::configured(asked.clone());
        let mut prepared = Guest::boot(Upper::Tmpfs);
        prepared.prepare(Prepare { program: b"sh".to_vec(), hosts: true, resolv_conf: true, ..Prepare::default() });
        prepared.reconnect();
        prepared.hello(1);
        prepared.configure(asked);
        let (plain, prepared) = (plain.run(script.clone()), prepared.run(script));
        assert!(plain.text().starts_with("clone\nclone\n127.0.0.1 here\npid 1\n0\n1\n"), "{}", plain.text());
        assert_eq!((prepared.text(), &prepared.stderr, prepared.code), (plain.text(), &plain.stderr, plain.code));
    }

    fn a_prepared_process_takes_a_terminal_a_user_and_a_failure() {
        let prepared = || {
            let mut guest = Guest::boot(Upper::Tmpfs);
            guest.prepare(Prepare { program: b"nope".to_vec(), ..Prepare::default() });
            guest.configure(Configure::default());
            guest
        };
        let size = Some(WindowSize { rows: 5, cols: 6 });
        let outcome = prepared().run(Exec { terminal: size, ..sh("stty size; id -u; test -t 0 && echo tty") });
        assert_eq!(outcome.text(), "5 6\r\n0\r\ntty\r\n");
        assert_eq!(prepared().run(Exec { user: "www".into(), ..sh("id -u; echo $HOME") }).text(), "33\n/var/www\n");
        let mut guest = prepared();
        guest.exec(command(&["nope"]));
        assert!(matches!(guest.control.message(), Some(GuestMessage::ExecFailed { stage: Stage::Program, errno: 2, .. })));
    }

    fn a_prepared_process_makes_way_for_one_with_other_capabilities() {
        let mut guest = Guest::boot(Upper::Tmpfs);
        guest.prepare(Prepare::default());
        guest.configure(Configure::default());
        let script = "echo $$; grep -c ' /proc proc' /proc/self/mounts; test -w /proc/sys/kernel/hostname && echo w";
        let outcome = guest.run(Exec { capabilities: Capabilities(u64::MAX), ..sh(script) });
        assert_eq!(outcome.text(), "1\n1\nw\n", "{outcome:?}");
    }

    fn a_container_is_prepared_once_and_before_it_is_made() {
        let mut guest = guest();
        guest.control.send(&HostMessage::Prepare(Prepare::default()));
        assert!(matches!(guest.control.message(), Some(GuestMessage::Error { .. })));
        guest.ends();
    }

    fn a_busy_agent_ends_with_its_host() {
        let mut guest = guest();
        let mut program = guest.start(sh("echo up; sleep 1000"));
        program.read_until("up");
        guest.control.socket.shutdown(std::net::Shutdown::Both).unwrap();
        guest.ends();
    }

    fn a_broken_protocol_is_reported_and_ends_the_machine() {
        use std::io::Write as _;
        let mut guest = guest();
        guest.control.socket.write_all(&[0xff; 16]).unwrap();
        match guest.control.message() {
            Some(GuestMessage::Error { errno: 0, message }) => assert!(message.contains("protocol"), "{message}"),
            other => panic!("{other:?}"),
        }
        guest.ends();
    }
}
