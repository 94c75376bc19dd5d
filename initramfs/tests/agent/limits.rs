//! Limits, the container's init, and what is told of a running container.

use servin_init::proto::*;

use crate::harness::{Guest, Running, command, sh, skipped_without};
use crate::root_tests;

fn guest() -> Guest {
    Guest::configured(Configure::default())
}

pub(crate) fn observe(guest: &mut Guest, subject: Subject) -> String {
    guest.control.send(&HostMessage::Observe { token: 5, subject });
    match guest.control.message() {
        Some(GuestMessage::Observed { token: 5, cut: false, text }) => String::from_utf8(text).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// A main program that lives until it has input.
fn waiting(guest: &mut Guest, exec: Exec) -> Running {
    let mut main = guest.start(Exec { stdin: true, ..exec });
    main.read_until("up");
    main
}

root_tests! {
    fn further_groups_are_given_by_name_and_number() {
        let groups = vec!["extra".into(), "4711".into(), "35".into()];
        let outcome = guest().run(Exec { user: "33:34".into(), groups, ..sh("id -G") });
        assert_eq!(outcome.text(), "34 35 4711\n");
        let mut guest = guest();
        guest.exec(Exec { groups: vec!["nope".into()], ..sh("true") });
        let Some(GuestMessage::ExecFailed { stage: Stage::User, message, .. }) = guest.control.message() else {
            panic!("an unknown group was accepted")
        };
        assert!(message.contains("\"nope\""), "{message}");
    }

    fn the_readiness_to_be_killed_is_set() {
        let exec = Exec { oom_score_adj: Some(321), user: "www".into(), ..sh("cat /proc/self/oom_score_adj") };
        assert_eq!(guest().run(exec).text(), "321\n");
    }

    fn names_of_the_domain_and_settings_of_the_kernel_are_set() {
        let mut guest = Guest::configured(Configure {
            hostname: "box".into(),
            domainname: "example.org".into(),
            sysctls: vec![("kernel/msgmax".into(), "4242".into())],
            ..Configure::default()
        });
        let outcome = guest.run(sh("cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax"));
        assert_eq!(outcome.text(), "example.org\n4242\n");
    }

    fn a_setting_that_the_kernel_lacks_is_named() {
        let mut guest = Guest::boot(Upper::Tmpfs);
        let sysctls = vec![("kernel/nope".into(), "1".into())];
        guest.control.send(&HostMessage::Configure(Configure { sysctls, ..Configure::default() }));
        match guest.control.message() {
            Some(GuestMessage::Error { errno: 2, message }) => assert!(message.contains("kernel/nope"), "{message}"),
            other => panic!("{other:?}"),
        }
        guest.ends();
    }

    fn an_init_starts_the_program_as_its_child_and_ends_with_its_code() {
        let outcome = guest().run(Exec { init: true, ..sh("echo $$; cat /proc/1/comm; exit 7") });
        let (pid, rest) = outcome.text().split_once('\n').unwrap();
        assert!(pid.parse::<u32>().unwrap() > 1);
        assert_eq!((rest, outcome.code), ("servin-init\n", 7));
        let killed = guest().run(Exec { init: true, user: "www".into(), ..sh("kill -9 $$") });
        assert_eq!(killed.code, 137);
    }

    fn an_init_passes_signals_on_and_reaps_orphans() {
        let mut guest = guest();
        // The orphan is named by its number: a zombie would still be found.
        let script = "trap 'echo term; exit 3' TERM; (sleep 0.1 & echo $! > /tmp/orphan); sleep 1; \
            test -e /proc/$(cat /tmp/orphan) && echo zombie; echo ready; while :; do sleep 1000 & wait $!; done";
        let mut program = guest.start(Exec { init: true, ..sh(script) });
        program.read_until("ready");
        guest.control.send(&HostMessage::Signal { id: program.id, signal: 15 });
        let outcome = guest.wait(program);
        assert_eq!((outcome.text(), outcome.code), ("ready\nterm\n", 3));
    }

    fn a_program_that_an_init_cannot_execute_is_127_or_126_with_a_line() {
        for (program, code, why) in [("nope", 127, "no such file"), ("/etc/plain", 126, "permission denied")] {
            let outcome = guest().run(Exec { init: true, ..command(&[program]) });
            assert_eq!(outcome.code, code);
            assert_eq!(String::from_utf8_lossy(&outcome.stderr), format!("servin-init: cannot execute {program}: {why}\n"));
        }
    }

    fn an_init_hands_the_terminal_to_the_program() {
        let mut guest = guest();
        let terminal = Some(WindowSize { rows: 24, cols: 80 });
        let mut program = guest.start(Exec {
            terminal,
            stdin: true,
            init: true,
            ..sh("stty -echo; trap 'echo int; exit 4' INT; echo ready; cat")
        });
        program.read_until("ready");
        program.input(b"one\n");
        program.read_until("one");
        program.input(b"\x03");
        let outcome = guest.wait(program);
        assert_eq!((outcome.text(), outcome.code), ("ready\r\none\r\nint\r\n", 4));
    }

    fn limits_of_a_running_container_change() {
        if skipped_without(&["memory", "pids", "cpu"]) {
            return;
        }
        let mut guest = Guest::configured(Configure {
            limits: Limits { pids_max: Some(50), ..Limits::default() },
            ..Configure::default()
        });
        let main = waiting(&mut guest, sh("echo up; read x; cd /sys/fs/cgroup; cat memory.max pids.max cpu.max"));
        let limits = Limits {
            memory_max: Some(64 << 20),
            pids_max: Some(u64::MAX),
            cpu: Some(CpuLimit { quota_us: 20_000, period_us: 100_000 }),
            files: Vec::new(),
        };
        guest.control.send(&HostMessage::Update(limits));
        assert_eq!(guest.control.message(), Some(GuestMessage::Updated { errno: 0, message: String::new() }));
        let bad = Limits { files: vec![("no.such".into(), "1".into())], ..Limits::default() };
        guest.control.send(&HostMessage::Update(bad));
        match guest.control.message() {
            Some(GuestMessage::Updated { message, .. }) => assert!(message.contains("no.such"), "{message}"),
            other => panic!("{other:?}"),
        }
        let mut main = main;
        main.input(b"\n");
        assert_eq!(guest.wait(main).text(), "up\n67108864\nmax\n20000 100000\n");
    }

    fn processes_are_told_with_user_and_command_line() {
        let mut guest = guest();
        let mut main = waiting(&mut guest, Exec { user: "www".into(), ..sh("echo up; read x") });
        let text = observe(&mut guest, Subject::Processes);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].split(' ').all(|number| number.parse::<f64>().is_ok()), "{text}");
        assert!(lines[1].starts_with("1 (sh) "), "{text}");
        assert!(lines[2].starts_with("Uid: 33 33"), "{text}");
        assert_eq!(lines[3], "sh -c echo up; read x ");
        main.input(b"\n");
        guest.wait(main);
    }

    fn what_the_container_uses_is_told_as_the_kernel_tells_it() {
        if skipped_without(&["memory", "pids", "cpu"]) {
            return;
        }
        let mut guest = guest();
        let mut main = waiting(&mut guest, sh("echo up; read x"));
        let text = observe(&mut guest, Subject::Usage);
        assert!(text.contains("== pids.current\n1\n"), "{text}");
        assert!(text.contains("== cpu.stat\nusage_usec "), "{text}");
        assert!(text.contains("== memory.current\n"), "{text}");
        main.input(b"\n");
        guest.wait(main);
    }

    fn a_privileged_container_may_write_to_its_kernel() {
        let all = Capabilities((1 << 41) - 1);
        let outcome = guest().run(Exec {
            capabilities: all,
            ..sh("grep CapEff /proc/self/status; grep -E ' (/sys|/proc/sys) ' /proc/mounts | cut -d' ' -f2,4")
        });
        let text = outcome.text();
        let (effective, mounts) = text.split_once('\n').unwrap();
        let effective = u64::from_str_radix(effective.trim_start_matches("CapEff:\t"), 16).unwrap();
        // The test's own process may lack one or another.
        assert!(effective >> 21 & 1 == 1 && effective.count_ones() > 30, "{text}");
        assert!(mounts.starts_with("/sys rw,") && !mounts.contains("/proc/sys"), "{text}");
    }
}
