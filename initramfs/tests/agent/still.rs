//! A container that stands still, and goes on in a machine that was restored.

use std::time::{Duration, Instant};

use servin_init::proto::*;

use super::harness::{Guest, Running, sh, skipped_without};
use super::limits::observe;
use super::root_tests;

/// Lets the container stand still or go on.
fn freeze(guest: &mut Guest, frozen: bool) {
    guest.control.send(&HostMessage::Freeze { frozen });
    assert_eq!(guest.control.message(), Some(GuestMessage::Frozen { errno: 0, message: String::new() }));
}

/// A container whose main program counts up a file as fast as it can, and writes a line for each line of its input.
fn counting(guest: &mut Guest) -> Running {
    let script =
        "(while :; do echo x >> /count; done) & echo up; while read line; do echo got $line; done; echo over";
    let mut main = guest.start(Exec { stdin: true, ..sh(script) });
    main.read_until("up\n");
    main
}

root_tests! {
    fn a_container_that_stands_still_does_nothing_and_goes_on() {
        if skipped_without(&[]) {
            return;
        }
        let mut guest = Guest::configured(Configure::default());
        let mut main = counting(&mut guest);
        for _ in 0..3 {
            freeze(&mut guest, true);
            // Processor time in microseconds. The kernel says that all stand still when the last begins to, and adds a few
            // microseconds later on; one that goes on uses all that it gets.
            let used = |guest: &mut Guest| {
                let text = observe(guest, Subject::Usage);
                let line = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap();
                Duration::from_micros(line.parse().unwrap())
            };
            let (before, began) = (used(&mut guest), Instant::now());
            while began.elapsed() < Duration::from_millis(50) {
                used(&mut guest);
            }
            let (more, passed) = (used(&mut guest) - before, began.elapsed());
            assert!(more < passed / 20, "{more:?} of {passed:?}");
            freeze(&mut guest, false);
        }
        main.input(b"more\n");
        main.read_until("got more\n");
        main.end_input();
        main.read_until("over\n");
        guest.control.send(&HostMessage::Signal { id: main.id, signal: 9 });
        main.read_to_end();
    }

    fn a_restored_container_goes_on_with_a_new_stream_and_without_its_other_programs() {
        if skipped_without(&[]) {
            return;
        }
        let named = |hostname: &str, id: Option<&str>| Configure {
            hostname: hostname.into(),
            machine_id: id.map(|id| id.as_bytes().to_vec()),
            hosts: Some(format!("10.1.0.5 {hostname}\n").into()),
            ..Configure::default()
        };
        let mut guest = Guest::configured(named("old", None));
        let main = counting(&mut guest);
        let script = "echo saved > /etc/machine-id; echo mine >> /etc/hosts; echo here; exec sleep 1000";
        let mut other = guest.start(Exec { main: false, ..sh(script) });
        other.read_until("here\n");
        freeze(&mut guest, true);
        guest.drop_stream(main);
        guest.drop_stream(other);
        guest.reconnect();
        let mut main = guest.again(1);
        guest.hello(1);
        guest.configure(named("new", Some("own\n")));
        freeze(&mut guest, false);
        // The other program is gone, and its number is free.
        let forgotten = guest.control.message();
        assert!(matches!(forgotten, Some(GuestMessage::Exited { id, status: ExitStatus::Signal(9), .. }) if id > 2));
        main.input(b"again\n");
        main.read_until("got again\n");
        assert!(!String::from_utf8_lossy(&main.output.stdout).contains("up"), "told twice");
        let asked = guest.run(Exec {
            main: false,
            ..sh("hostname; cat /etc/hostname /etc/machine-id /etc/hosts; ls /var/lib/dbus 2>&1; ps | grep -c 'sleep 100[0]'")
        });
        assert_eq!(asked.text(), "new\nnew\nown\n10.1.0.5 new\nmine\nls: /var/lib/dbus: No such file or directory\n0\n");
        main.end_input();
        main.read_until("over\n");
    }

    fn a_container_without_a_main_program_stands_still_too() {
        if skipped_without(&[]) {
            return;
        }
        let mut guest = Guest::configured(Configure::default());
        freeze(&mut guest, true);
        freeze(&mut guest, false);
        assert_eq!(guest.run(sh("echo hi")).text(), "hi\n");
    }
}
