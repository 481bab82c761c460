//! Calling the binary, and an agent that answers as the test says.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread::JoinHandle,
};

use serde_json::{Map, Value, json};
use underpass_enrolment::plugin::{PluginRequest, PluginResponse};

/// One call of the plugin, good unless a test makes it otherwise.
pub(crate) struct Call {
    directory: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
    keys: Map<String, Value>,
    previous_result: Option<String>,
    input: Option<Vec<u8>>,
}

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A result with what is easily lost on the way.
pub(crate) fn previous_result(version: &str) -> String {
    format!(
        r#"{{ "cniVersion":"{version}", "interfaces":[{{"name":"cni0"}},{{"name":"eth0","sandbox":"/run/netns/a"}}],
  "ips":[{{"interface":0,"address":"10.1.0.1/16"}},{{"interface":1,"address":"10.1.0.5/16"}},{{"address":"fd00::5/64"}}],
  "later": 12345678901234567890123, "z":1.0,"a":1e2}}"#
    )
}

impl Call {
    pub(crate) fn new(command: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let keys = json!({
            "cniVersion": "1.0.0", "name": "cluster", "type": "underpass-cni",
            "agentSocket": directory.path().join("plugin.sock"),
            "enrolledNamespaces": directory.path().join("enrolled"),
            "timeout": "5s",
        });
        let Value::Object(keys) = keys else { unreachable!() };
        let variables = [("CNI_COMMAND", command), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/run/netns/a")];
        let variables = variables.into_iter().chain([("CNI_IFNAME", "eth0"), ("CNI_PATH", "/opt/cni/bin")]);
        let variables = variables.map(|(name, value)| (name, value.to_owned())).collect();
        let previous_result = Some(previous_result("1.0.0"));
        Self { directory, variables, keys, previous_result, input: None }.namespace("shop")
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory().join("plugin.sock")
    }

    pub(crate) fn version(mut self, version: &str) -> Self {
        self.previous_result = Some(previous_result(version));
        self.key("cniVersion", json!(version))
    }

    pub(crate) fn key(mut self, key: &str, value: Value) -> Self {
        if key == "prevResult" {
            self.previous_result = None;
        }
        self.keys.insert(key.to_owned(), value);
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        if key == "prevResult" {
            self.previous_result = None;
        }
        self.keys.remove(key);
        self
    }

    pub(crate) fn variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.retain(|(other, _)| *other != name);
        self.variables.push((name, value.to_owned()));
        self
    }

    pub(crate) fn namespace(self, namespace: &str) -> Self {
        let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web-0;K8S_POD_UID=u1");
        self.variable("CNI_ARGS", &arguments)
    }

    /// What the agent left on disk.
    pub(crate) fn enrolled(self, list: &str) -> Self {
        std::fs::write(self.directory().join("enrolled"), list).unwrap();
        self
    }

    /// Other input than the keys.
    pub(crate) fn input(mut self, input: Vec<u8>) -> Self {
        self.input = Some(input);
        self
    }

    fn to_input(&self) -> Vec<u8> {
        let mut text = Value::Object(self.keys.clone()).to_string();
        if let Some(result) = &self.previous_result {
            // As text, so that the test's JSON library changes nothing.
            text.truncate(text.len() - 1);
            text.push_str(&format!(",\"prevResult\":{result}}}"));
        }
        self.input.clone().unwrap_or(text.into_bytes())
    }

    pub(crate) fn run(&self) -> Done {
        let mut child = Command::new(env!("CARGO_BIN_EXE_underpass-cni"))
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The plugin may have read enough before all is written.
        drop(child.stdin.take().unwrap().write_all(&self.to_input()));
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Done { ok: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Done {
    /// The message of an error as the specification wants it.
    pub(crate) fn error(&self, version: &str, code: u32) -> String {
        assert!(!self.ok, "{self:?}");
        let error: Value = serde_json::from_str(&self.stdout).unwrap();
        let message = error["msg"].as_str().unwrap();
        assert_eq!(error, json!({"cniVersion": version, "code": code, "msg": message}));
        message.to_owned()
    }
}

/// How the agent answers one connection.
pub(crate) enum Answer {
    Bytes(&'static [u8]),
    Close,
    Flood,
    Line(PluginResponse),
    Never,
}

/// An agent that answers connection after connection; the last answer is repeated for all further ones.
pub(crate) struct Agent {
    socket: PathBuf,
    end: mpsc::Sender<()>,
    thread: JoinHandle<Vec<PluginRequest>>,
}

impl Agent {
    pub(crate) fn start<const N: usize>(call: &Call, answers: [Answer; N]) -> Self {
        let listener = UnixListener::bind(call.socket()).unwrap();
        let (end, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || serve(&listener, &answers, &ended));
        Self { socket: call.socket(), end, thread }
    }

    /// What it was asked, once it has ended.
    pub(crate) fn requests(self) -> Vec<PluginRequest> {
        self.end.send(()).unwrap();
        drop(UnixStream::connect(&self.socket).unwrap());
        self.thread.join().unwrap()
    }
}

fn serve(listener: &UnixListener, answers: &[Answer], ended: &mpsc::Receiver<()>) -> Vec<PluginRequest> {
    let mut requests = Vec::new();
    let mut hung = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        if ended.try_recv().is_ok() {
            return requests;
        }
        let mut line = Vec::new();
        BufReader::new(&stream).read_until(b'\n', &mut line).unwrap();
        let answer = answers.get(requests.len()).or(answers.last());
        requests.push(PluginRequest::from_line(&line).unwrap());
        match answer.unwrap() {
            Answer::Bytes(bytes) => stream.write_all(bytes).unwrap(),
            Answer::Close => {}
            // Until the plugin has enough of it.
            Answer::Flood => while stream.write_all(&[b' '; 65536]).is_ok() {},
            Answer::Line(response) => stream.write_all(&response.to_line().unwrap()).unwrap(),
            Answer::Never => hung.push(stream),
        }
    }
}
