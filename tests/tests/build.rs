//! `servin build`: what a Dockerfile comes to, and what of it is done again.

use std::fs;
use std::path::Path;

use servin_tests::machine::{Outcome, Servin};

const DOCKERFILE: &str = r#"# The head.
ARG BASE=servin/base
FROM ${BASE} AS Made
ARG WHO=nobody
ENV GREETING="hello $WHO" \
    # between
    OTHER=${NOTHING:-else}
WORKDIR /app/src
COPY --chown=0:7 --chmod=755 src/ .
COPY *.txt deep /docs/
RUN echo "$GREETING $OTHER from $(pwd)" > said && \
    stat -c '%u:%g %a' one && \
    ls /docs
RUN ["sh", "-c", "ln -s said link; echo $WHO > who"]

FROM servin/base AS unused
RUN exit 9

FROM servin/base
COPY --from=made /app/src /app/
COPY --from=0 /app/src/said /new/place/
EXPOSE 80 8000-8001/udp
VOLUME /data
USER 33
ENTRYPOINT ["cat"]
CMD ["/new/place/said"]
"#;

fn context(folder: &Path) {
    fs::create_dir_all(folder.join("src/below")).unwrap();
    fs::create_dir_all(folder.join("deep")).unwrap();
    for (name, text) in [
        ("Dockerfile", DOCKERFILE),
        ("src/one", "1"),
        ("src/below/two", "2"),
        ("src/skipped", "no"),
        ("a.txt", "a"),
        ("b.txt", "b"),
        ("deep/c", "c"),
        (".dockerignore", "src/skipped\n"),
    ] {
        fs::write(folder.join(name), text).unwrap();
    }
}

fn containers(servin: &Servin) -> usize {
    fs::read_dir(servin.data_root().join("containers")).map_or(0, Iterator::count)
}

fn failed(outcome: &Outcome, why: &str) {
    assert!(outcome.code == Some(1) && outcome.stderr.contains(why), "{why}: {outcome:?}");
}

#[test]
fn an_image_is_made_as_the_dockerfile_says_and_a_step_is_done_once() {
    let Some(servin) = Servin::new() else { return };
    let folder = servin.folder().join("context");
    context(&folder);
    let path = folder.to_str().unwrap();
    let build =
        ["build", "-t", "made:1", "-t", "also:latest", "--label", "of=test", "--build-arg", "WHO=you", path];
    let built = servin.go(&build);
    assert_eq!(built.code, Some(0), "{built:?}");
    assert_eq!(built.text(), "0:7 755\na.txt\nb.txt\nc\n", "{built:?}");
    assert!(built.stderr.contains("named made:1\nnamed also:latest\n"), "{built:?}");
    assert!(!built.stderr.contains("exit 9"), "a stage that nothing needs is not built: {built:?}");
    assert_eq!(containers(&servin), 0);

    servin.go(&["run", "--rm", "made:1"]).expect(0, "hello you else from /app/src\n");
    let look = "cat /app/one /app/below/two /app/who; readlink /app/link; ls /app; id -u; ls -d /data";
    servin
        .go(&["run", "--rm", "--entrypoint", "sh", "also", "-c", look])
        .expect(0, "12you\nsaid\nbelow\nlink\none\nsaid\nwho\n33\n/data\n");
    let format = "{{.Config.Entrypoint}} {{.Config.Cmd}} {{.Config.User}} {{json .Config.ExposedPorts}} {{.Config.Labels.of}}";
    servin
        .go(&["inspect", "-f", format, "made:1"])
        .expect(0, "[cat] [/new/place/said] 33 {\"80/tcp\":{},\"8000/udp\":{},\"8001/udp\":{}} test\n");

    // Nothing has changed, so that nothing runs; then a file does, and what comes after it.
    let again = servin.go(&build);
    assert!(again.code == Some(0) && again.stderr.matches("done before").count() == 6, "{again:?}");
    assert_eq!(again.text(), "");
    let quiet = servin.go(&["build", "-q", "--label", "of=test", "--build-arg", "WHO=you", path]);
    quiet.expect(0, &servin.go(&["inspect", "-f", "{{.Id}}", "made:1"]).text());
    fs::write(folder.join("b.txt"), "other").unwrap();
    let changed = servin.go(&["build", "--target", "made", "-t", "part", "--build-arg", "WHO=you", path]);
    assert!(changed.code == Some(0) && changed.stderr.matches("done before").count() == 1, "{changed:?}");
    servin.go(&["run", "--rm", "part", "cat", "/docs/b.txt"]).expect(0, "other");
}

#[test]
fn a_step_that_fails_is_told_with_its_line_and_leaves_nothing() {
    let Some(servin) = Servin::new() else { return };
    let folder = servin.folder().join("context");
    fs::create_dir(&folder).unwrap();
    let path = folder.to_str().unwrap();
    let build = |text: &str| {
        fs::write(folder.join("Dockerfile"), text).unwrap();
        servin.go(&["build", "-t", "no", path])
    };
    failed(
        &build("FROM servin/base\nRUN true\nRUN echo told >&2; exit 7\n"),
        "line 3 of the Dockerfile: the command",
    );
    failed(&build("FROM servin/base\nCOPY nothing /\n"), "find nothing in the context");
    failed(&build("FROM servin/base\nCOPY --chown=nobodys . /x\n"), "no user nobodys");
    failed(&build("FROM servin/base\nRUNN x\n"), "unknown instruction 'RUNN' at line 2");
    failed(
        &build("FROM servin/base\nRUN --mount=type=cache,target=/x true\n"),
        "RUN --mount is not built yet",
    );
    assert_eq!(containers(&servin), 0);
    assert_eq!(servin.go(&["run", "--rm", "no"]).code, Some(125), "no name for what failed");
    failed(&servin.go(&["build", "https://example.invalid/x.git"]), "not built yet");
    failed(&servin.go(&["build", "--target", "who", "-"]), "the Dockerfile");
}

#[test]
fn a_static_program_makes_an_image_from_nothing() {
    let Some(servin) = Servin::new() else { return };
    let Some(programs) = servin.programs() else { return };
    let folder = servin.folder().join("context");
    fs::create_dir(&folder).unwrap();
    fs::copy(programs.join("share"), folder.join("share")).unwrap();
    fs::write(folder.join("data"), "x").unwrap();
    let text = "FROM scratch\nCOPY share data /bin/\nENTRYPOINT [\"/bin/share\", \"try\", \"/bin/data\", \"shared\", \"0\", \"1\"]\n";
    fs::write(folder.join("Dockerfile"), text).unwrap();
    let built = servin.go(&["build", "-t", "tiny", folder.to_str().unwrap()]);
    assert_eq!(built.code, Some(0), "{built:?}");
    servin.go(&["run", "--rm", "tiny"]).expect(0, "taken\n");
}
