//! The binary from the command line: what a newcomer sees, and what a start that cannot be says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

use crate::support::{Authority, Setup};

fn tramline(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tramline")).args(arguments).env_remove("RUST_LOG").output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn snapshot(name: &str, output: &[u8]) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("cli");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text(output)));
}

#[test]
fn help_says_what_there_is() {
    let help = tramline(&["--help"]);
    assert!(help.status.success());
    snapshot("help", &help.stdout);
    let version = tramline(&["--version"]);
    assert_eq!(text(&version.stdout), concat!("tramline ", env!("CARGO_PKG_VERSION"), "\n"));
    let wrong = tramline(&["chekc"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("'check'"), "{wrong:?}");
}

#[test]
fn a_server_whose_log_is_off_serves_until_it_is_told_to_stop() {
    let setup = Setup::own("");
    let mut child = Command::new(env!("CARGO_BIN_EXE_tramline"))
        .args(["--config".as_ref(), setup.path("routes.yaml").as_os_str()])
        .env("RUST_LOG", "off")
        .env("DATABASE_URL", "sqlite::memory:")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let served = lines.find_map(|line| line.unwrap().split_once("http://").map(|(_, at)| at.to_owned())).unwrap();
    let mut socket = TcpStream::connect(&served).unwrap();
    socket.write_all(format!("GET /readyz HTTP/1.0\r\nHost: {served}\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_shipped_routes_are_valid_and_shown_as_one_table() {
    let check = tramline(&["check"]);
    assert!(check.status.success(), "{check:?}");
    assert_eq!(text(&check.stdout), "routes.yaml is valid: 3 protocols, 13 channels, 2 sources\n");
    let routes = tramline(&["routes"]);
    assert!(routes.status.success());
    snapshot("routes", &routes.stdout);
}

#[test]
fn a_certificate_that_clients_refuse_is_a_warning() {
    for (hours, told) in [(0, " expired, at "), (24, " expires soon, at "), (24 * 365, "")] {
        let text = "version: 1\napi: { tls: { cert: tls/tls.crt, key: tls/tls.key } }\n";
        let setup = Authority::expiring(hours).in_folder(Setup::own("").file("routes.yaml", text));
        let path = setup.path("routes.yaml");
        let check = tramline(&["check", "--config", path.to_str().unwrap()]);
        assert!(check.status.success(), "{check:?}");
        let warned = text_after_first_line(&check.stdout);
        let is_right =
            if told.is_empty() { warned.is_empty() } else { warned.starts_with("warning: the certificate in ") && warned.contains(told) };
        assert!(is_right, "{hours} {check:?}");
    }
}

fn text_after_first_line(bytes: &[u8]) -> &str {
    text(bytes).split_once('\n').unwrap().1
}

#[test]
fn a_file_that_does_not_check_does_not_start() {
    for command in [&["serve"][..], &[], &["routes"]] {
        let arguments = [command, &["--config", "tests/check/cases/units.yaml"]].concat();
        let run = tramline(&arguments);
        assert_eq!(run.status.code(), Some(1), "{command:?}");
        assert!(text(&run.stderr).contains("units.yaml:9:24 error[R008]"), "{run:?}");
    }
    let missing = tramline(&["--config", "no/such/file.yaml"]);
    assert_eq!(missing.status.code(), Some(1));
    let told = text(&missing.stderr);
    assert!(told.contains("no/such/file.yaml: cannot be read") && told.contains("`--config FILE`"), "{missing:?}");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = Setup::shipped().env("CANVAS_HOST", "127.0.0.1").env("CANVAS_PORT", &port).start_in_vain();
    assert_eq!(ended.code, Some(1));
    let told = ended.log.iter().any(|line| line.as_str().is_some_and(|line| line.contains(&format!("cannot listen on 127.0.0.1:{port}"))));
    assert!(told, "{:?}", ended.log);
}

#[test]
fn a_second_server_on_one_database_is_refused() {
    let server = Setup::shipped().start();
    let ended = server.setup().start_in_vain();
    assert_eq!(ended.code, Some(1));
    assert!(ended.log.iter().any(|line| line.as_str().is_some_and(|line| line.contains("in use"))), "{:?}", ended.log);
}

/// A folder with two configurations, `old/routes.yaml` and `new/routes.yaml`.
fn two_configurations() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let head = "version: 1\nprotocols:\n  agent:\n    listen: localhost:3000/\n    codec: json\n    type: /type\n    validate: envelope\n";
    let messages = "    messages:\n      say: { to: agent }\n";
    write(
        "old/routes.yaml",
        &format!(
            "{head}    limits: {{ rate: 100/60s }}\n{messages}channels: {{ agent: {{}}, \"agent:ide\": {{}} }}\napi: {{ token: hunter2 }}\n"
        ),
    );
    let added = "      cancel: { leave: agent }\n";
    write(
        "new/routes.yaml",
        &format!("{head}    limits: {{ rate: 50/60s }}\n{messages}{added}channels: {{ agent: {{}} }}\napi: {{ token: hunter3 }}\n"),
    );
    write("old/plugins/agent.rhai", "fn envelope(msg) { true }\nfn same(msg) { true }\n");
    write("new/plugins/agent.rhai", "fn envelope(msg) { msg.type != () }\nfn same(msg) { true }\n");
    folder
}

/// Runs `tramline plan` in a folder.
fn plan(folder: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tramline"));
    command.current_dir(folder).arg("plan").args(arguments).env_remove("RUST_LOG").env_remove("TRAMLINE_TOKEN").output().unwrap()
}

#[test]
fn what_a_reload_would_change_is_shown_without_a_server() {
    let folder = two_configurations();
    let folder = folder.path();
    let arguments = ["--config", "new/routes.yaml", "--against", "old/routes.yaml"];
    let shown = plan(folder, &arguments);
    assert_eq!(shown.status.code(), Some(0), "{shown:?}");
    snapshot("plan", &shown.stdout);
    let json = plan(folder, &[&arguments[..], &["--json", "--exit-code"]].concat());
    assert_eq!(json.status.code(), Some(3));
    snapshot("plan_json", &json.stdout);
    for said in [&shown, &json] {
        assert!(!text(&said.stdout).contains("hunter"), "{said:?}");
    }
    let same = plan(folder, &["--config", "old/routes.yaml", "--against", "old/routes.yaml", "--exit-code"]);
    assert_eq!((same.status.code(), text(&same.stdout)), (Some(0), "no difference\n"));
    std::fs::write(folder.join("new/plugins/agent.rhai"), "fn envelope(msg) { tr").unwrap();
    let invalid = plan(folder, &arguments);
    assert_eq!(invalid.status.code(), Some(1));
    assert!(text(&invalid.stderr).contains("new/plugins/agent.rhai:1:") && invalid.stdout.is_empty(), "{invalid:?}");
}

#[test]
fn what_a_reload_would_refuse_is_refused_without_a_server_too() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let routes = |store: &str, listen: &str, api: &str| {
        format!(
            "version: 1\nstore: \"sqlite://{store}.db\"\napi: {{ listen: \"{api}\", token: x }}\n\
             protocols: {{ p: {{ listen: \"{listen}/\", messages: {{ a: {{ reply: 1 }} }} }} }}\n"
        )
    };
    let (chat, api) = ("localhost:3000", "localhost:4000");
    write("old.yaml", &routes("a", chat, api));
    let compare = |new: &str, more: &[&str]| {
        write("new.yaml", new);
        plan(folder.path(), &[&["--config", "new.yaml", "--against", "old.yaml", "--exit-code"], more].concat())
    };
    for (new, why) in [
        (routes("b", chat, api), "`store` cannot change while the server runs: restart the server"),
        (
            routes("a", "0.0.0.0:3000", api),
            "cannot listen on 0.0.0.0:3000: this server's own listener on localhost:3000, for the protocol `p`",
        ),
        (
            routes("a", chat, "0.0.0.0:4000"),
            "cannot listen on 0.0.0.0:4000: this server's own listener on localhost:4000, for the REST interface",
        ),
    ] {
        let shown = compare(&new, &[]);
        assert_eq!(shown.status.code(), Some(1), "{shown:?}");
        assert!(text(&shown.stdout).starts_with("~ "), "what differs is shown all the same: {shown:?}");
        assert!(text(&shown.stderr).starts_with(&format!("the reload would be refused\n{why}")), "{shown:?}");
        let json = compare(&new, &["--json"]);
        let answer: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert!(answer["refusal"]["diagnostics"].as_str().unwrap().starts_with(why), "{answer}");
        assert!(answer["changes"].is_array() && json.status.code() == Some(1), "{json:?}");
    }
    // Handed over: the same sockets, one of two, two that swap, and another port.
    for new in [routes("a", "127.0.0.1:3000", api), routes("a", "localhost:4000", "localhost:3000"), routes("a", "0.0.0.0:3001", api)] {
        let shown = compare(&new, &[]);
        assert_eq!((shown.status.code(), text(&shown.stderr)), (Some(3), ""), "{new} {shown:?}");
    }
    let invalid = compare("version: 2\n", &["--json"]);
    let answer: serde_json::Value = serde_json::from_slice(&invalid.stdout).unwrap();
    assert_eq!((&answer["refusal"]["why"], invalid.status.code()), (&"invalid".into(), Some(1)), "{answer}");
}

#[test]
fn a_running_server_is_asked() {
    let server = Setup::own("").env("API_TOKEN", "secret").start();
    let folder = two_configurations();
    let (folder, url) = (folder.path(), server.http("api", ""));
    let ask = |folder: &std::path::Path, token: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tramline"));
        let arguments = [&["plan", "--url", &url], more].concat();
        command.current_dir(folder).args(arguments).env_remove("RUST_LOG").env("TRAMLINE_TOKEN", token).output().unwrap()
    };
    let own = server.setup().path("");
    let same = ask(&own, "secret", &[]);
    assert_eq!((same.status.code(), text(&same.stdout), text(&same.stderr)), (Some(0), "no difference\n", ""));
    // The server reads its own file, whatever is named here.
    let other = ask(folder, "secret", &["--config", "new/routes.yaml"]);
    let told = format!("note: the server reads {}, not new/routes.yaml: ", own.join("routes.yaml").display());
    assert!(other.status.success() && text(&other.stderr).starts_with(&told), "{other:?}");
    assert!(text(&other.stderr).contains("`--against FILE`"), "{other:?}");
    // An empty variable is none: then the token is that of the file, which the server does not know.
    for (token, told) in [("", "`api.token`"), ("wrong", "TRAMLINE_TOKEN")] {
        let refused = ask(folder, token, &["--config", "new/routes.yaml", "--json"]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains(": 401 ") && text(&refused.stderr).contains(told), "{refused:?}");
        let answer: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
        assert_eq!(answer["status"], 401, "programs get the answer");
    }
    // Refused, for people and for programs.
    let written = std::fs::read_to_string(own.join("routes.yaml")).unwrap();
    std::fs::write(own.join("routes.yaml"), format!("{written}chanels: {{}}\n")).unwrap();
    let refused = ask(&own, "secret", &["--json"]);
    let answer: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!((&answer["refusal"]["why"], refused.status.code()), (&"invalid".into(), Some(1)), "{refused:?}");
    assert!(text(&refused.stderr).contains("the reload would be refused\nroutes.yaml:"), "{refused:?}");
}

#[test]
fn a_server_that_cannot_be_asked_is_named() {
    let folder = two_configurations();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{closed}");
    let ended = plan(folder.path(), &["--config", "new/routes.yaml", "--url", &url]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(text(&ended.stderr).starts_with(&format!("{url}: cannot be reached: ")), "{ended:?}");
    let ended = plan(folder.path(), &["--config", "new/routes.yaml", "--url", "localhost:4000"]);
    assert!(text(&ended.stderr).contains("is not a valid server address"), "{ended:?}");
    let both = plan(folder.path(), &["--url", &url, "--against", "old/routes.yaml"]);
    assert_eq!(both.status.code(), Some(2));
}
