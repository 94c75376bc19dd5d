//! Pulls, pushes and logins against Debian's docker-registry on loopback.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use servin_tests::machine::{DEADLINE, Outcome, Servin};

/// `servin` with the password `s3cret`.
const USERS: &str = "servin:$2y$05$KTefPcdqlBNfXCuLPQ0lBOrKrq8sKA0rm.6JmiGXEaM0RHVz8k8e2\n";

/// A registry with data of its own; it ends with the test.
struct Registry {
    host: String,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// `None`, and a line that says so, where the program is not installed.
    fn start(guarded: bool) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let users = dir.path().join("users");
        fs::write(&users, USERS).unwrap();
        let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", users.display());
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}\"}}\n{}",
            dir.path().join("data").display(),
            if guarded { &auth } else { "" }
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child =
            match command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).spawn() {
                Ok(child) => child,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    println!("skipped: docker-registry is not installed");
                    return None;
                }
                Err(error) => panic!("{error}"),
            };
        let registry = Registry { host, child, _dir: dir };
        let began = Instant::now();
        while TcpStream::connect(&registry.host).is_err() {
            assert!(began.elapsed() < DEADLINE, "the registry does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn archive() -> String {
    let dir = std::env::var("SERVIN_GUEST_DIR").expect("SERVIN_GUEST_DIR is set by make test");
    Path::new(&dir).join("base.tar").to_str().unwrap().to_owned()
}

/// Loads the base image, and gives it this name.
fn load(servin: &Servin, name: &str) {
    let loaded = servin.go(&["load", "-q", "-i", &archive()]);
    assert_eq!(loaded.code, Some(0), "{loaded:?}");
    servin.go(&["tag", "servin/base", name]).expect(0, "");
}

fn id(servin: &Servin, name: &str) -> String {
    servin.go(&["inspect", "-f", "{{.Id}}", name]).text()
}

fn ok(outcome: Outcome) -> Outcome {
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    outcome
}

#[test]
fn what_is_pushed_with_an_account_is_pulled_with_it_alone() {
    let Some(registry) = Registry::start(true) else { return };
    let (one, other) = (Servin::without_machine(), Servin::without_machine());
    let name = registry.name("team/base:1");
    load(&one, &name);
    let refused = one.go(&["push", &name]);
    assert!(refused.code == Some(1) && refused.stderr.contains("servin login"), "{refused:?}");
    for (word, code) in [("wrong", 1), ("s3cret", 0)] {
        let login = one.go(&["login", "-u", "servin", "-p", word, &registry.host]);
        assert_eq!(login.code, Some(code), "{login:?}");
    }
    let pushed = ok(one.go(&["push", &name])).text();
    let digest = pushed.split(' ').find(|word| word.starts_with("sha256:")).unwrap().to_owned();
    assert_eq!(other.go(&["pull", "-q", &name]).code, Some(1));
    let known = format!("{{\"auths\": {{\"{}\": {{\"auth\": \"c2VydmluOnMzY3JldA==\"}}}}}}", registry.host);
    fs::create_dir_all(other.folder().join(".docker")).unwrap();
    fs::write(other.folder().join(".docker/config.json"), known).unwrap();
    other.go(&["pull", "-q", &name]).expect(0, &format!("{name}\n"));
    assert_eq!(id(&one, &name), id(&other, &name));
    let digests = other.go(&["inspect", "-f", "{{index .RepoDigests 0}}", &name]).text();
    assert_eq!(digests, format!("{}@{digest}\n", registry.name("team/base")));
    ok(one.go(&["logout", &registry.host]));
    assert_eq!(one.go(&["pull", "-q", &name]).code, Some(1));
}

#[test]
fn a_pull_that_is_killed_at_any_point_leaves_a_store_that_holds() {
    let Some(registry) = Registry::start(false) else { return };
    let (one, other) = (Servin::without_machine(), Servin::without_machine());
    let name = registry.name("base:1");
    load(&one, &name);
    ok(one.go(&["push", "-q", &name]));
    for step in 0..12u64 {
        let mut child = other.command(["pull", "-q", &name]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(step * 15));
        let _ = child.kill();
        let whole = child.wait().unwrap().success();
        let listed = ok(other.go(&["images", "-q"])).text().lines().count();
        assert!(listed == 1 || (listed == 0 && !whole), "{listed} images");
        if listed == 1 {
            ok(other.go(&["save", "-o", "/dev/null", &name]));
            ok(other.go(&["rmi", &name]));
        }
        assert_eq!(fs::read_dir(other.data_root().join("tmp")).unwrap().count(), 0, "something was left");
    }
    ok(other.go(&["pull", "-q", &name]));
    assert_eq!(id(&one, &name), id(&other, &name));
}

#[test]
fn run_pulls_what_is_missing_and_tells_it_apart_from_the_output() {
    let Some(registry) = Registry::start(false) else { return };
    let Some(servin) = Servin::on_any_host() else { return };
    let name = registry.name("base:1");
    load(&servin, &name);
    ok(servin.go(&["push", "-q", &name]));
    ok(servin.go(&["rmi", &name]));
    let refused = servin.go(&["run", "--rm", "--pull", "never", &name, "true"]);
    assert!(refused.code == Some(125) && refused.stderr.contains("no such image"), "{refused:?}");
    let outcome = servin.go(&["run", "--rm", &name, "sh", "-c", "echo out; exit 7"]);
    outcome.expect(7, "out\n");
    assert!(outcome.stderr.contains("Unable to find image") && outcome.stderr.contains("Digest: sha256:"));
}

#[test]
fn a_credential_helper_keeps_the_password_instead_of_the_file() {
    let Some(registry) = Registry::start(true) else { return };
    let mut servin = Servin::without_machine();
    let programs = servin.folder().join("bin");
    let kept = servin.folder().join("kept");
    fs::create_dir_all(&programs).unwrap();
    // Keeps what `store` is given, and gives it for the server that it is of.
    let script = format!(
        r#"#!/bin/sh
read -r input
case $1 in
  store) printf '%s' "$input" >'{kept}' ;;
  get) grep -sF "\"$input\"" '{kept}' || {{ echo 'credentials not found in native keychain'; exit 1; }} ;;
  erase) rm '{kept}' ;;
esac
"#,
        kept = kept.display()
    );
    let program = programs.join("docker-credential-test");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    servin.env.push(("PATH".into(), format!("{}:{path}", programs.display())));
    let accounts = servin.folder().join("auth.json");
    servin.env.push(("SERVIN_AUTH_FILE".into(), accounts.display().to_string()));
    fs::write(&accounts, r#"{"credsStore": "test"}"#).unwrap();
    let name = registry.name("base:1");
    load(&servin, &name);
    assert_eq!(servin.go(&["push", &name]).code, Some(1));
    let login =
        servin.go_with_input(&["login", "-u", "servin", "--password-stdin", &registry.host], b"s3cret\n");
    login.expect(0, "Login Succeeded\n");
    assert!(!fs::read_to_string(&accounts).unwrap().contains("auths"), "the file has it too");
    assert!(fs::read_to_string(&kept).unwrap().contains("s3cret"));
    ok(servin.go(&["push", &name]));
    ok(servin.go(&["logout", &registry.host]));
    assert!(!kept.exists());
    assert_eq!(servin.go(&["push", &name]).code, Some(1));
}
