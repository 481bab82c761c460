//! The real binary, called as container runtimes call it, with an agent of the test's own.

// Marked as a test, which it is, so that the lints know.
#[cfg(test)]
mod support;

use serde_json::{Value, json};
use support::{Agent, Answer, Call};
use underpass_enrolment::plugin::{Attachment, Command, Link, PluginResponse, Pod};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn enrolled() -> Answer {
    Answer::Line(PluginResponse::done(true))
}

fn failed(link: Link, message: &str) -> Answer {
    Answer::Line(PluginResponse::failed(link, message))
}

#[test]
fn add_tells_the_agent_of_the_pod_and_passes_the_result_on() {
    for version in VERSIONS {
        let call = Call::new("ADD").version(version);
        let agent = Agent::start(&call, [enrolled()]);
        let done = call.run();
        assert!(done.ok, "{version}: {done:?}");
        // To the byte: numbers that do not fit a double, white space and order stay.
        assert_eq!(done.stdout, support::previous_result(version));
        let [request] = agent.requests().try_into().unwrap();
        assert_eq!(request.command, Command::Add);
        assert_eq!((&*request.container_id, &*request.netns, &*request.ifname), ("c1", "/run/netns/a", "eth0"));
        assert_eq!(request.pod, Some(Pod { namespace: "shop".into(), name: "web-0".into(), uid: "u1".into() }));
        assert_eq!(request.addresses, ["10.1.0.5".parse::<std::net::IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
        assert!(request.deadline_ms > 0 && request.deadline_ms < 5000, "{request:?}");
    }
}

#[test]
fn add_of_a_pod_outside_the_mesh_passes() {
    let call = Call::new("ADD");
    let _agent = Agent::start(&call, [Answer::Line(PluginResponse::done(false))]);
    let done = call.run();
    assert!(done.ok && done.stdout == support::previous_result("1.0.0"), "{done:?}");
}

#[test]
fn add_fails_and_names_the_missing_link() {
    for (link, name) in [(Link::Listeners, "listeners"), (Link::Rules, "rules"), (Link::Certificate, "certificate")] {
        let call = Call::new("ADD");
        let _agent = Agent::start(&call, [failed(link, "it is not there")]);
        let error = call.run().error("1.0.0", 100);
        let expected = format!("ADD pod shop/web-0 (c1): missing link: {name}: it is not there");
        assert_eq!(error, expected);
    }
}

#[test]
fn with_the_agent_away_pods_of_enrolled_namespaces_wait_and_fail() {
    let call = Call::new("ADD").enrolled("shop\n").key("timeout", json!("300ms"));
    let begin = std::time::Instant::now();
    let error = call.run().error("1.0.0", 11);
    assert!(begin.elapsed() >= std::time::Duration::from_millis(200), "it must have waited");
    assert!(error.starts_with("ADD pod shop/web-0 (c1): missing link: agent: cannot connect"), "{error}");
    assert!(error.contains("plugin.sock"), "{error}");
}

#[test]
fn with_the_agent_away_all_other_pods_start_at_once() {
    for list in ["", "# none\n", "shopping\nsho\n"] {
        let call = Call::new("ADD").enrolled(list).key("timeout", json!(60));
        let done = call.run();
        assert!(done.ok && done.stdout == support::previous_result("1.0.0"), "{done:?}");
        assert!(done.stderr.contains("the node agent is away"), "{done:?}");
    }
    assert!(Call::new("ADD").key("timeout", json!(60)).run().ok, "no agent has ever run here");
}

#[test]
fn a_dead_agents_socket_is_an_agent_that_is_away() {
    let call = Call::new("ADD").key("timeout", json!(60));
    drop(std::os::unix::net::UnixListener::bind(call.socket()).unwrap());
    let done = call.run();
    assert!(done.ok && done.stderr.contains("refused"), "{done:?}");
}

#[test]
fn a_waiting_pod_starts_when_the_agent_is_back() {
    let call = Call::new("ADD").enrolled("shop");
    // An agent that dies with the question, twice, and comes back.
    let agent = Agent::start(&call, [Answer::Close, Answer::Close, enrolled()]);
    let done = call.run();
    assert!(done.ok, "{done:?}");
    assert_eq!(agent.requests().len(), 3);
}

#[test]
fn an_agent_that_hangs_is_an_agent_that_is_away() {
    let hanging = |list| {
        let call = Call::new("ADD").enrolled(list).key("timeout", json!("200ms"));
        let _agent = Agent::start(&call, [Answer::Never]);
        call.run()
    };
    let error = hanging("shop").error("1.0.0", 11);
    assert!(error.contains("missing link: agent: it did not answer within 0.2 s"), "{error}");
    assert!(hanging("other").ok);
}

#[test]
fn an_agent_that_talks_nonsense_is_an_agent_that_is_away() {
    for nonsense in [&b"hello\n"[..], b"{}\n", b"\n", b"{\"enrolled\":true"] {
        let call = Call::new("ADD").enrolled("shop").key("timeout", json!("50ms"));
        let _agent = Agent::start(&call, [Answer::Bytes(nonsense)]);
        call.run().error("1.0.0", 11);
    }
}

#[test]
fn an_agent_whose_queue_is_full_is_waited_for_no_longer_than_allowed() {
    let call = Call::new("ADD").key("timeout", json!("200ms"));
    let address = socket2::SockAddr::unix(call.socket()).unwrap();
    let unix = || socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    let listener = unix();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let waiting = unix();
    waiting.connect(&address).unwrap();
    let done = call.run();
    assert!(done.ok && done.stderr.contains("it took no connection within 0.2 s"), "{done:?}");
}

#[test]
fn an_answer_without_end_is_cut() {
    let call = Call::new("ADD").key("timeout", json!(60));
    let _agent = Agent::start(&call, [Answer::Flood]);
    let done = call.run();
    assert!(done.ok && done.stderr.contains("its answer has no end"), "{done:?}");
}

#[test]
fn pods_that_are_never_enrolled_are_not_the_agents_business() {
    for namespace in ["kube-system", "underpass-system"] {
        for command in ["ADD", "CHECK", "DEL"] {
            let call = Call::new(command)
                .enrolled("kube-system\nunderpass-system\n")
                .key("timeout", json!(60))
                .namespace(namespace);
            let agent = Agent::start(&call, [failed(Link::Rules, "must not be asked")]);
            let done = call.run();
            assert!(done.ok, "{command} {namespace}: {done:?}");
            assert!(agent.requests().is_empty());
        }
    }
}

#[test]
fn callers_other_than_kubernetes_pass() {
    for arguments in ["", "IgnoreUnknown=1;FOO=bar"] {
        let call = Call::new("ADD").variable("CNI_ARGS", arguments);
        let agent = Agent::start(&call, [failed(Link::Rules, "must not be asked")]);
        let done = call.run();
        assert!(done.ok && done.stdout == support::previous_result("1.0.0"), "{done:?}");
        assert!(agent.requests().is_empty());
    }
}

#[test]
fn del_tells_the_agent_and_never_fails() {
    for (answer, asked) in [
        (enrolled(), true),
        (failed(Link::Attachment, "unknown"), true),
        (Answer::Close, true),
        (Answer::Bytes(b"nonsense\n"), true),
    ] {
        let call = Call::new("DEL").enrolled("shop").variable("CNI_NETNS", "");
        let agent = Agent::start(&call, [answer]);
        let done = call.run();
        assert!(done.ok && done.stdout.is_empty(), "{done:?}");
        let requests = agent.requests();
        assert_eq!(!requests.is_empty(), asked);
        assert!(requests.iter().all(|request| request.command == Command::Del && request.netns.is_empty()));
    }
}

#[test]
fn del_without_usable_arguments_names_the_sandbox() {
    for arguments in ["", "nonsense", "K8S_POD_NAME=web-0", "IgnoreUnknown=1"] {
        let call = Call::new("DEL").variable("CNI_ARGS", arguments);
        let agent = Agent::start(&call, [Answer::Line(PluginResponse::done(false))]);
        assert!(call.run().ok);
        let [request] = agent.requests().try_into().unwrap();
        assert_eq!((request.command, &*request.container_id, request.pod), (Command::Del, "c1", None));
    }
}

#[test]
fn del_succeeds_at_once_while_the_agent_is_away() {
    let call = Call::new("DEL").enrolled("shop").variable("CNI_NETNS", "").key("timeout", json!(60));
    let begin = std::time::Instant::now();
    assert!(call.run().ok);
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    let call = Call::new("DEL").without("prevResult").key("timeout", json!("100ms"));
    let _agent = Agent::start(&call, [Answer::Never]);
    assert!(call.run().ok, "an agent that hangs must not keep a pod from ending");
}

#[test]
fn del_succeeds_whatever_became_of_our_configuration() {
    for (key, value) in [("timeout", json!("soon")), ("agentSockt", json!("/a")), ("agentSocket", json!(7))] {
        assert!(Call::new("DEL").key(key, value.clone()).run().ok, "{key}");
        assert!(!Call::new("ADD").key(key, value).run().ok, "{key}");
    }
}

#[test]
fn check_asks_the_agent() {
    for version in VERSIONS {
        let call = Call::new("CHECK").version(version);
        let agent = Agent::start(&call, [enrolled()]);
        let done = call.run();
        assert!(done.ok && done.stdout.is_empty(), "{done:?}");
        assert_eq!(agent.requests()[0].command, Command::Check);
    }
    let call = Call::new("CHECK");
    let _agent = Agent::start(&call, [failed(Link::Attachment, "no such sandbox")]);
    call.run().error("1.0.0", 3);
    let call = Call::new("CHECK");
    let _agent = Agent::start(&call, [failed(Link::Rules, "the table is gone")]);
    assert!(call.run().error("1.0.0", 100).contains("rules: the table is gone"));
    Call::new("CHECK").enrolled("shop").run().error("1.0.0", 11);
    assert!(Call::new("CHECK").enrolled("other").run().ok);
}

#[test]
fn gc_names_what_there_is() {
    let attachments = json!([{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth0"}]);
    let call = Call::new("GC").version("1.1.0").key("cni.dev/valid-attachments", attachments);
    let agent = Agent::start(&call, [Answer::Line(PluginResponse::done(false))]);
    let done = call.run();
    assert!(done.ok && done.stdout.is_empty(), "{done:?}");
    let [request] = agent.requests().try_into().unwrap();
    let attachment = |id: &str| Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() };
    assert_eq!(request.command, Command::Gc);
    assert_eq!(request.valid_attachments, [attachment("c1"), attachment("c2")]);
    Call::new("GC").version("1.1.0").key("cni.dev/valid-attachments", json!([])).run().error("1.1.0", 11);
    Call::new("GC").version("1.1.0").run().error("1.1.0", 7);
}

#[test]
fn status_is_well_whenever_the_binary_runs() {
    for version in VERSIONS {
        let done = Call::new("STATUS").version(version).enrolled("shop").without("prevResult").run();
        assert!(done.ok && done.stdout.is_empty(), "{done:?}");
    }
    for wrong in [json!("never"), json!(7), Value::Null] {
        assert!(Call::new("STATUS").key("agentSocket", wrong).run().ok);
    }
    assert!(Call::new("STATUS").input(b"nonsense".to_vec()).run().ok);
}

#[test]
fn version_answers_in_the_askers_version() {
    for (input, expected) in
        [(r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), (r#"{"cniVersion":"9.9.9"}"#, "9.9.9"), ("", "1.1.0")]
    {
        let done = Call::new("VERSION").input(input.as_bytes().to_vec()).run();
        assert!(done.ok, "{done:?}");
        let answer: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(answer, json!({"cniVersion": expected, "supportedVersions": VERSIONS}));
    }
}

#[test]
fn other_versions_are_refused() {
    for (version, command) in [("0.2.0", "ADD"), ("0.3.0", "DEL"), ("2.0.0", "GC")] {
        let error = Call::new(command).version(version).run().error(version, 1);
        assert!(error.contains(version), "{error}");
    }
    Call::new("ADD").without("cniVersion").run().error("1.1.0", 1);
}

#[test]
fn errors_have_the_codes_of_the_specification() {
    Call::new("ADD").key("agentSockt", json!("/a")).run().error("1.0.0", 2);
    Call::new("").run().error("1.0.0", 4);
    Call::new("EAT").run().error("1.0.0", 4);
    Call::new("ADD").variable("CNI_NETNS", "").run().error("1.0.0", 4);
    Call::new("ADD").variable("CNI_CONTAINERID", "").run().error("1.0.0", 4);
    Call::new("DEL").variable("CNI_IFNAME", "").run().error("1.0.0", 4);
    Call::new("ADD").variable("CNI_ARGS", "K8S_POD_NAME=web-0").run().error("1.0.0", 4);
    for malformed in ["", "{", "[]", "no JSON", "\u{0}"] {
        Call::new("ADD").input(malformed.as_bytes().to_vec()).run().error("1.1.0", 6);
    }
    Call::new("ADD").key("prevResult", json!({"ips": [{"address": "ten"}]})).run().error("1.0.0", 6);
    Call::new("ADD").key("timeout", json!("soon")).run().error("1.0.0", 7);
}

#[test]
fn a_missing_result_is_an_error_that_explains_chaining() {
    let wrong = [Value::Null, json!([]), json!("{}")].map(|wrong| Call::new("ADD").key("prevResult", wrong));
    for call in
        wrong.into_iter().chain([Call::new("ADD").without("prevResult"), Call::new("CHECK").without("prevResult")])
    {
        let error = call.run().error("1.0.0", 7);
        assert!(error.contains("prevResult: is no result; this plugin stands behind one"), "{error}");
    }
}

#[test]
fn endless_input_is_cut() {
    let input = vec![b' '; 5 << 20];
    let error = Call::new("ADD").input(input).run().error("1.1.0", 6);
    assert!(error.contains("standard input is longer than"), "{error}");
}

#[test]
fn writes_what_it_did_where_it_is_told() {
    let call = Call::new("ADD");
    let file = call.directory().join("cni.log");
    let call = call.key("logFile", json!(file));
    let _agent = Agent::start(&call, [enrolled(), failed(Link::Proxy, "none is connected")]);
    assert!(call.run().ok);
    assert!(!call.run().ok);
    let log = std::fs::read_to_string(file).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(lines[0].ends_with("ADD pod shop/web-0 (c1): enrolled"), "{log}");
    assert!(lines[1].ends_with("missing link: proxy: none is connected"), "{log}");
}
