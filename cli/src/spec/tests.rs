use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use servin_engine::container::{Cpus, RootSource, Text};

use super::*;
use crate::args;

/// A host in the head.
#[derive(Default)]
struct Fake {
    variables: HashMap<&'static str, &'static str>,
    files: HashMap<&'static str, &'static [u8]>,
    terminal: bool,
}

impl Host for Fake {
    fn cwd(&self) -> io::Result<PathBuf> {
        Ok(PathBuf::from("/home/me"))
    }
    fn variable(&self, name: &OsStr) -> Option<OsString> {
        self.variables.get(name.to_str()?).map(OsString::from)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = path.to_str().and_then(|path| self.files.get(path));
        file.map(|bytes| bytes.to_vec()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn input_is_terminal(&self) -> bool {
        self.terminal
    }
}

fn meant_on(host: &Fake, words: &[&str]) -> Result<Run, String> {
    let words = ["servin", "run"].iter().chain(words).map(OsString::from);
    let args::Typed::Verb(_, verb) = args::parse(words).map_err(|error| error.to_string())? else {
        panic!("not a verb")
    };
    let args::Verb::Run(typed) = verb else { panic!("not run") };
    run(*typed, host).map_err(|error| {
        assert_eq!(error.code(), 125);
        crate::output::chain(&error)
    })
}

fn meant(words: &[&str]) -> Run {
    meant_on(&Fake::default(), words).unwrap()
}

fn refused(words: &[&str]) -> String {
    meant_on(&Fake::default(), words).unwrap_err()
}

fn texts(words: &[&str]) -> Vec<Text> {
    words.iter().map(|word| Text::from(*word)).collect()
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let run = meant(&["img"]);
    assert_eq!(run.request.root, RootSource::Image("img".into()));
    assert_eq!(run.request.memory, 512 << 20);
    assert_eq!(run.request.cpus, Cpus::ONE);
    assert!(run.request.args.is_empty() && run.request.env.is_empty() && run.request.entrypoint.is_none());
    assert!(!run.request.stdin && !run.request.terminal && !run.request.remove && !run.timing);
    assert!(run.sig_proxy);
    assert_eq!(run.detach_keys, [0x10, 0x11]);
}

#[test]
fn the_first_word_is_the_image_unless_a_directory_is_given() {
    assert_eq!(meant(&["img", "a", "b"]).request.args, texts(&["a", "b"]));
    let run = meant(&["--rootfs", "../root/./x/", "sh", "-c", "true"]);
    assert_eq!(run.request.root, RootSource::Directory("/home/root/x".into()));
    assert_eq!(run.request.args, texts(&["sh", "-c", "true"]));
}

#[test]
fn sizes_have_dockers_units() {
    for (text, bytes) in [
        ("64m", 64 << 20),
        ("64M", 64 << 20),
        ("64mb", 64 << 20),
        ("64MiB", 64 << 20),
        ("64 m", 64 << 20),
        ("1g", 1 << 30),
        ("1.5g", 3 << 29),
        ("8388608", 8 << 20),
        ("8388608b", 8 << 20),
        ("65536k", 64 << 20),
    ] {
        assert_eq!(meant(&["-m", text, "img"]).request.memory, bytes, "{text}");
    }
    for text in
        ["", "m", "1x", "1.2.3g", "-1", "1e3", "0", "1m", "5m", "99999999999999999999", "17000000t", "1.m"]
    {
        assert!(
            refused(&["-m", text, "img"])
                .starts_with(&format!("invalid value \"{text}\" for -m, --memory: "))
        );
    }
}

#[test]
fn cpus_are_decimal() {
    for (text, nano) in
        [("1", 1_000_000_000), ("0.5", 500_000_000), (".25", 250_000_000), ("8", 8_000_000_000)]
    {
        assert_eq!(meant(&["--cpus", text, "img"]).request.cpus, Cpus { nano }, "{text}");
    }
    for text in ["", ".", "0", "0.001", "8.5", "-1", "x", "1e2", "0.0000000001"] {
        refused(&["--cpus", text, "img"]);
    }
}

#[test]
fn variables_are_set_passed_on_or_removed() {
    let host = Fake { variables: [("HOST", "from host")].into(), ..Fake::default() };
    let run =
        meant_on(&host, &["-e", "A=1", "-e", "HOST", "-e", "GONE", "-e", "EMPTY=", "-e", "B=x=y", "img"]);
    let expected = texts(&["A=1", "HOST=from host", "GONE", "EMPTY=", "B=x=y"]);
    assert_eq!(run.unwrap().request.env, expected);
    assert!(refused(&["-e", "=x", "img"]).contains("needs a name"));
    assert!(refused(&["-e", "", "img"]).contains("needs a name"));
}

#[test]
fn variables_of_files_come_before_those_of_the_command_line() {
    let content = b"\xef\xbb\xbf# comment\n\n  A=1\nB= \"as it is\" \r\nHOST\nGONE\n#X=1\nC=#x\n";
    let host = Fake {
        variables: [("HOST", "h")].into(),
        files: [("/home/me/env", &content[..]), ("/abs", b"A=2")].into(),
        ..Fake::default()
    };
    let run = meant_on(&host, &["-e", "Z=1", "--env-file", "env", "--env-file", "/abs", "img"]).unwrap();
    let expected = texts(&["A=1", "B= \"as it is\" ", "HOST=h", "C=#x", "A=2", "Z=1"]);
    assert_eq!(run.request.env, expected);
}

#[test]
fn a_bad_env_file_is_named_with_its_line() {
    let host = Fake { files: [("/bad", &b"A=1\nB C=1"[..]), ("/bin", b"\xff")].into(), ..Fake::default() };
    let text = meant_on(&host, &["--env-file", "/bad", "img"]).unwrap_err();
    assert_eq!(text, "invalid value \"/bad\" for --env-file: line 2: \"B C\" is no name");
    assert!(
        meant_on(&host, &["--env-file", "/bin", "img"]).unwrap_err().contains("line 1 is not valid UTF-8")
    );
    let text = meant_on(&host, &["--env-file", "/none", "img"]).unwrap_err();
    assert!(text.starts_with("cannot read --env-file /none: "), "{text}");
}

#[test]
fn volumes_are_host_and_container_paths() {
    let bind = |words: &str| {
        let run = meant(&["-v", words, "img"]);
        let bind = &run.request.binds[0];
        (bind.host.to_string(), bind.target.to_string(), bind.read_only)
    };
    assert_eq!(bind("/a:/b"), ("/a".into(), "/b".into(), false));
    assert_eq!(bind("/a/:/b/../c/:ro"), ("/a".into(), "/c".into(), true));
    assert_eq!(bind("./x:/b:rw"), ("/home/me/x".into(), "/b".into(), false));
    assert_eq!(bind("../x:/b"), ("/home/x".into(), "/b".into(), false));
    assert_eq!(bind(".:/b"), ("/home/me".into(), "/b".into(), false));
    assert_eq!(bind("/a b:/c d"), ("/a b".into(), "/c d".into(), false));
}

#[test]
fn volumes_have_a_name_or_none() {
    let volume = |words: &[&str]| {
        let run = meant(words);
        let volume = run.request.volumes[0].clone();
        (volume.name, volume.target.to_string(), volume.read_only, volume.no_copy)
    };
    assert_eq!(volume(&["-v", "data:/b", "img"]), (Some("data".into()), "/b".into(), false, false));
    assert_eq!(volume(&["-v", "my.data:/b/:ro", "img"]), (Some("my.data".into()), "/b".into(), true, false));
    assert_eq!(volume(&["-v", "data:/b:nocopy", "img"]), (Some("data".into()), "/b".into(), false, true));
    assert_eq!(volume(&["-v", "/b", "img"]), (None, "/b".into(), false, false));
    assert_eq!(
        volume(&["--mount", "src=data,dst=/b", "img"]),
        (Some("data".into()), "/b".into(), false, false)
    );
    let text = refused(&["-v", "data:/x", "--mount", "type=tmpfs,target=/x", "img"]);
    assert!(text.contains("something else is mounted there already"), "{text}");
    let text = refused(&["--mount", "type=bind,target=/x", "img"]);
    assert!(text.contains("--mount") && text.contains("source"), "{text}");
}

#[test]
fn mounts_of_other_containers_are_asked_for_by_name() {
    let run = meant(&["--volumes-from", "one", "--volumes-from=two:ro", "--volumes-from", "three:rw", "img"]);
    let expected = [("one", None), ("two", Some(true)), ("three", Some(false))];
    assert_eq!(run.volumes_from, expected.map(|(name, read_only)| (name.to_owned(), read_only)));
    assert!(refused(&["--volumes-from", "one:z", "img"]).contains("it is ro or rw"));
    assert!(refused(&["--volumes-from", ":ro", "img"]).contains("it is CONTAINER"));
}

#[test]
fn volumes_that_cannot_be_done_are_refused() {
    for (word, why) in [
        ("data", "must begin with /"),
        ("a b:/data", "\"a b\" is no name of a volume"),
        ("x:/data", "\"x\" is no name of a volume"),
        ("/a:/b:nocopy", "the option \"nocopy\" is not supported"),
        ("data:/b:cached", "the option \"cached\" is not supported"),
        ("/a:b", "must begin with /"),
        ("/a:/", "root cannot be mounted over"),
        ("/a:/..", "root cannot be mounted over"),
        (":/b", "the host's path, or the volume's name, is empty"),
        ("/a:/b:z", "the option \"z\" is not supported"),
        ("/a:/b:ro:x", "it is HOST:CONTAINER"),
    ] {
        let text = refused(&["-v", word, "img"]);
        assert!(text.contains(why), "{word}: {text}");
    }
    let text = refused(&["-v", "/a:/x", "--tmpfs", "/x/", "img"]);
    assert!(text.contains("something else is mounted there already"), "{text}");
}

#[test]
fn tmpfs_has_dockers_defaults_and_options() {
    let tmpfs = |word: &str| meant(&["--tmpfs", word, "img"]).request.tmpfs.remove(0);
    let plain = tmpfs("/run");
    assert_eq!((plain.size, plain.mode), (None, 0o1777));
    assert!(plain.no_exec && plain.no_suid && plain.no_dev && !plain.read_only);
    let odd = tmpfs("/t:rw,exec,suid,size=64k,mode=755");
    assert_eq!((odd.size, odd.mode), (Some(64 << 10), 0o755));
    assert!(!odd.no_exec && !odd.no_suid && odd.no_dev);
    for word in ["/t:size=x", "/t:mode=9", "/t:uid=1", "/t:foo", "t", "/"] {
        refused(&["--tmpfs", word, "img"]);
    }
}

#[test]
fn names_users_and_directories_are_checked() {
    assert_eq!(meant(&["--name", "web_1.x-2", "img"]).request.name.unwrap(), "web_1.x-2");
    for name in ["", "a", "-a", "a b", "a/b", ".x"] {
        refused(&["--name", name, "img"]);
    }
    assert_eq!(meant(&["-h", "db.example-1", "img"]).request.hostname.unwrap(), "db.example-1");
    for name in ["", "-a", "a..b", "a b", &"x".repeat(65)] {
        refused(&["-h", name, "img"]);
    }
    assert_eq!(meant(&["-u", "app:1000", "img"]).request.user.unwrap(), "app:1000");
    assert_eq!(meant(&["-u", "", "img"]).request.user, None);
    for user in [":1", "a:b:c", "a/b"] {
        refused(&["-u", user, "img"]);
    }
    assert_eq!(meant(&["-w", "/a/../b/", "img"]).request.cwd.unwrap(), "/b".into());
    assert!(refused(&["-w", "rel", "img"]).contains("must begin with /"));
}

#[test]
fn signals_go_by_name_or_number() {
    let signal = |text: &str| meant(&["--stop-signal", text, "img"]).request.stop_signal.unwrap();
    assert_eq!(signal("TERM"), 15);
    assert_eq!(signal("sigint"), 2);
    assert_eq!(signal("9"), 9);
    assert_eq!(signal("SIGRTMIN+3"), 37);
    assert_eq!(signal("RTMAX-1"), 63);
    for text in ["", "0", "65", "SIGNO", "RTMIN+31", "RTMIN-1"] {
        refused(&["--stop-signal", text, "img"]);
    }
}

#[test]
fn detach_keys_are_letters_and_control_letters() {
    let keys = |text: &str| meant(&["--detach-keys", text, "img"]).detach_keys;
    assert_eq!(keys("ctrl-a,d"), [1, b'd']);
    assert_eq!(keys("ctrl-\\"), [0x1c]);
    assert!(keys("").is_empty());
    for text in ["ctrl-", "ctrl-1", "ab", ","] {
        refused(&["--detach-keys", text, "img"]);
    }
}

#[test]
fn a_terminal_with_input_needs_one_here() {
    assert!(refused(&["-it", "img"]).contains("needs a terminal as standard input"));
    assert!(meant(&["-t", "img"]).request.terminal);
    let host = Fake { terminal: true, ..Fake::default() };
    assert!(meant_on(&host, &["-it", "img"]).unwrap().request.stdin);
}

#[test]
fn an_empty_entrypoint_is_kept_apart_from_none() {
    assert_eq!(meant(&["--entrypoint", "", "img"]).request.entrypoint, Some(Text::default()));
    assert_eq!(meant(&["--entrypoint", "/bin/x", "img"]).request.entrypoint, Some("/bin/x".into()));
}

#[test]
fn labels_have_a_name_and_perhaps_a_value() {
    let run = meant(&["-l", "a=b=c", "--label", "d", "img"]);
    let expected = [("a".to_owned(), "b=c".to_owned()), ("d".to_owned(), String::new())];
    assert_eq!(run.request.labels, expected);
    refused(&["-l", "=x", "img"]);
}

#[test]
fn limits_and_privileges_are_read_as_docker_writes_them() {
    let request = meant(&[
        "--pids-limit",
        "5",
        "--shm-size",
        "1m",
        "--ulimit",
        "nofile=10:20",
        "--ulimit",
        "nofile=30",
        "--cap-add",
        "net_admin",
        "--cap-drop=ALL",
        "--security-opt",
        "no-new-privileges",
        "--oom-score-adj",
        "-5",
        "--sysctl",
        "net.core.somaxconn=1024",
        "--group-add",
        "audio",
        "--add-host",
        "db:10.0.0.1",
        "--domainname",
        "example.org",
        "--init",
        "--cpu-shares",
        "512",
        "--memory-reservation",
        "64m",
        "--log-opt",
        "max-size=1k",
        "--log-opt",
        "max-file=3",
        "img",
    ])
    .request;
    let (limits, privileges) = (&request.limits, &request.privileges);
    assert_eq!((limits.pids, limits.shm_size, limits.oom_score_adj), (Some(5), Some(1 << 20), Some(-5)));
    assert_eq!(limits.ulimits.len(), 1, "the last one counts");
    assert_eq!((limits.ulimits[0].soft, limits.ulimits[0].hard), (30, 30));
    assert_eq!((privileges.cap_add[0].as_str(), privileges.cap_drop[0].as_str()), ("CAP_NET_ADMIN", "ALL"));
    assert!(privileges.no_new_privileges && request.init);
    assert_eq!((limits.cpu_shares, limits.memory_reservation), (Some(512), Some(64 << 20)));
    assert_eq!(request.hosts, [("db".to_owned(), "10.0.0.1".to_owned())]);
    assert_eq!((request.log.max_size, request.log.max_file), (Some(1024), Some(3)));
}

#[test]
fn checks_are_read_with_their_times() {
    let request = meant(&[
        "--health-cmd",
        "curl -f x",
        "--health-interval=1m",
        "--health-timeout",
        "1.5s",
        "--health-retries",
        "2",
        "--health-start-period",
        "0",
        "img",
    ])
    .request;
    let health = request.health;
    assert_eq!(health.command.as_deref(), Some("curl -f x"));
    assert_eq!((health.interval, health.timeout), (Some(60_000_000_000), Some(1_500_000_000)));
    assert_eq!((health.retries, health.start_period), (Some(2), Some(0)));
}

#[test]
fn limits_that_mean_nothing_are_refused_with_their_flag() {
    for (words, text) in [
        (&["--pids-limit", "x"][..], "--pids-limit"),
        (&["--ulimit", "files=1"], "\"files\" is none of"),
        (&["--cap-add", "fly"], "--cap-add"),
        (&["--security-opt", "seccomp=profile.json"], "seccomp=unconfined"),
        (&["--cpu-quota", "10"], "microseconds"),
        (&["--cpu-quota", "50000", "--cpus", "1"], "leave one of them out"),
        (&["--cpu-period", "50000", "--cpus", "1"], "leave one of them out"),
        (&["--cpu-quota", "9000000"], "1000 to 800000"),
        (&["--cpu-period", "5"], "1000 to 1000000"),
        (&["--sysctl", "kernel.hostname=x"], "--hostname"),
        (&["--sysctl", "../x=1"], "net.core.somaxconn"),
        (&["--log-driver", "syslog"], "json-file, local or none"),
        (&["--log-opt", "tag=x"], "\"tag\" is not known"),
        (&["--log-driver", "none", "--log-opt", "max-file=2"], "--log-driver none"),
        (&["--no-healthcheck", "--health-cmd", "x"], "exclude each other"),
        (&["--health-interval", "5"], "no duration"),
        (&["--memory-swap", "64m"], "less than the memory limit"),
        (&["--memory-reservation", "2g"], "above the memory limit"),
        (&["--oom-score-adj", "2000"], "-1000 to 1000"),
    ] {
        let said = refused(&[words, &["img"]].concat());
        assert!(said.contains(text), "{words:?}: {said}");
    }
}

#[test]
fn when_and_which_image_is_pulled_is_said_by_flags() {
    let native = servin_engine::image::Platform::native().to_string();
    let run = meant(&["img"]);
    assert_eq!((run.pull, run.platform.to_string(), run.quiet), (Pull::Missing, native.clone(), false));
    let run = meant(&["--pull=always", "-q", "--platform", &native, "img"]);
    assert_eq!((run.pull, run.quiet), (Pull::Always, true));
    assert_eq!(meant(&["--pull", "never", "img"]).pull, Pull::Never);
    assert!(refused(&["--pull", "sometimes", "img"]).contains("always, missing or never"));
    assert!(refused(&["--platform", "linux/s390x", "img"]).contains(&native));
    assert!(refused(&["--platform", "linux", "img"]).contains("--platform"));
    for flag in [&["--pull", "always"][..], &["--platform", &native]] {
        let words = [flag, &["--rootfs", "/x", "true"]].concat();
        assert!(refused(&words).contains("--rootfs"), "{words:?}");
    }
}

#[test]
fn a_quota_is_processors_in_other_words() {
    let nano = |words: &[&str]| meant(&[words, &["img"]].concat()).request.cpus.nano;
    assert_eq!(nano(&["--cpu-quota", "50000"]), 500_000_000);
    assert_eq!(nano(&["--cpu-quota=30000", "--cpu-period=20000"]), 1_500_000_000);
    assert_eq!(nano(&["--cpu-period", "20000"]), Cpus::ONE.nano);
    assert_eq!(nano(&["--cpu-quota", "-1", "--cpus", "2"]), 2_000_000_000);
    let limits = meant(&["--cpu-quota", "30000", "--cpu-period", "20000", "img"]).request.limits;
    assert_eq!((limits.cpu_quota, limits.cpu_period), (Some(30_000), Some(20_000)));
}

#[test]
fn what_is_so_anyway_is_taken() {
    let plain = meant(&["img"]);
    for words in [
        &["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor:unconfined"][..],
        &["--ipc", "private"],
        &["--cgroupns=private", "--isolation", "default"],
    ] {
        assert_eq!(meant(&[words, &["img"]].concat()), plain, "{words:?}");
    }
    assert!(refused(&["--ipc", "private", "--ipc", "host", "img"]).contains("run --ipc is not built"));
    let options =
        meant(&["--dns-opt", "ndots:2", "--dns-option", "rotate", "img"]).request.network.dns_options;
    assert_eq!(options, ["ndots:2", "rotate"]);
}
