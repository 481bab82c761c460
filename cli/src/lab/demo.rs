//! `underpass lab demo`: a walk through what the mesh does. Every line with a mark tells what was observed just then;
//! a walk that observes something else says so and ends with status 1.

use std::{cell::Cell, fs, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use underpass_lab::{Lab, LoadReport, Options, Place, Probe, Target, Wire, eventually};
use underpass_model::names::{ENROLLED, HBONE_PORT, MESH_LABEL};

use super::sample::{self, NAMESPACE, PAGE};
use crate::screen::{Progress, bad, good, heading, note, say};

mod latency;

/// What the demo's own lab is called.
pub(super) const NAME: &str = "demo";
/// In a lab that a demo made, and may therefore take down.
const MARK: &str = "made-by-demo";

const PATIENCE: Duration = Duration::from_secs(30);
/// A value that goes to Redis and back; easy to find on the wire.
const SECRET: &str = "a-password-that-nobody-else-should-see";

/// The walk: the lab, and whether everything observed so far was as it should be.
struct Walk {
    lab: Lab,
    failed: Cell<bool>,
}

pub(crate) fn walk(name: &str) -> Result<ExitCode> {
    say(
        "Underpass carries the traffic of pods through mutual TLS, without sidecars. This walk starts two nodes and three\n\
         unmodified programs (curl, python3's HTTP server, Redis) as network namespaces of this machine.",
    );
    let walk = Walk { lab: start(name)?, failed: Cell::new(false) };
    if let Err(error) = walk.steps() {
        walk.observe(false, &format!("the walk cannot go on: {error:#}"));
    }
    Ok(walk.end())
}

fn start(name: &str) -> Result<Lab> {
    let mut options = Options::new(name)?;
    options.number = Lab::free_number();
    heading("Starting");
    let progress = Progress::new();
    if Lab::attach(name).is_ok_and(|lab| lab.paths().root().join(MARK).exists()) {
        progress.step(&format!("taking down the lab called {name} of an earlier walk"));
        Lab::down(name)?;
    }
    // A lab of somebody else's making stays, and is told of.
    let lab = Lab::up_with(options, &mut |step| progress.step(step), |lab, tell| {
        fs::write(lab.paths().root().join(MARK), "")?;
        tell("starting client on node-a, web and redis on node-b");
        sample::start(lab)
    })?;
    progress.step("the lab is up");
    Ok(lab)
}

/// Where page and password can be read.
fn readable(wire: &Wire) -> String {
    let packets = |text: &str| match wire.count(text) {
        1 => "1 packet".to_owned(),
        count => format!("{count} packets"),
    };
    format!("the page can be read in {}, the password in {}", packets(PAGE), packets(SECRET))
}

impl Walk {
    fn steps(&self) -> Result<()> {
        let before = self.without_the_mesh()?;
        self.enrol_under_load()?;
        self.with_the_mesh(&before)?;
        self.beyond_the_mesh()?;
        self.leave_under_load()
    }

    fn observe(&self, as_it_should: bool, text: &str) {
        if as_it_should {
            good(text);
        } else {
            bad(text);
            self.failed.set(true);
        }
    }

    /// Runs a program in the client's pod.
    fn client(&self, argv: &[&str]) -> Result<String> {
        self.lab
            .run(sample::client(), argv, PATIENCE)?
            .ok()
            .with_context(|| format!("running {argv:?} in the client's pod"))
    }

    /// What one user would do: get a page, write and read a value.
    fn use_the_services(&self) -> Result<()> {
        let page = self.client(&["curl", "-sS", "--fail", "--max-time", "10", "http://web/"])?;
        ensure!(page.trim() == PAGE, "curl got {page:?}");
        let redis = |words: &[&str]| self.client(&[&["redis-cli", "-h", "redis"], words].concat());
        redis(&["set", "secret", SECRET])?;
        let value = redis(&["get", "secret"])?;
        ensure!(value.trim() == SECRET, "redis answered {value:?}");
        Ok(())
    }

    fn watch(&self, what: impl FnOnce() -> Result<()>) -> Result<Wire> {
        let capture = self.lab.capture_fabric()?;
        what()?;
        // Of what crosses the bridge only the sample's own, not the mesh talking to its operator.
        let client = self.lab.pod(&sample::pod("client"))?.v4()?;
        Ok(capture.finish()?.of(client))
    }

    fn without_the_mesh(&self) -> Result<latency::Latency> {
        heading("1. Without the mesh: whoever sees the wire reads along");
        let wire = self.watch(|| self.use_the_services())?;
        note("curl http://web/; redis-cli -h redis set secret …; redis-cli -h redis get secret");
        self.observe(
            wire.shows(PAGE) && wire.shows(SECRET),
            &format!("between the nodes: {} bytes in {} connections; {}", wire.bytes(), wire.opened(), readable(&wire)),
        );
        let latency = latency::measure(&self.lab)?;
        note(&format!("a Redis ping, from node to node: {latency}"));
        Ok(latency)
    }

    fn target(&self) -> Target {
        Target { http: ("web".to_owned(), 80), callers: 4, redis: Some(("redis".to_owned(), 6379)) }
    }

    fn report(&self, report: &LoadReport, what: &str) {
        let calls = format!(
            "{what}: {} calls of 4 callers, {} failed (longest {:.0} ms)",
            report.calls,
            report.failures.len(),
            report.longest_ms
        );
        self.observe(report.calls > 0 && report.failures.is_empty(), &calls);
        report.failures.iter().take(3).for_each(|failure| note(failure));
        let kept = match &report.long_connection {
            None => format!("the connection to Redis opened before lives on: {} pings answered", report.exchanges),
            Some(why) => format!("the connection to Redis opened before ended {why}"),
        };
        self.observe(report.long_connection.is_none(), &kept);
    }

    fn wait(&self, captured: bool) -> Result<()> {
        for name in ["client", "web", "redis"] {
            self.lab.wait_captured(&self.lab.pod(&sample::pod(name))?, captured, PATIENCE)?;
        }
        Ok(())
    }

    fn enrol_under_load(&self) -> Result<()> {
        heading("2. One label enrols running pods, under load");
        note(&format!("namespace {NAMESPACE}: {MESH_LABEL}={ENROLLED}"));
        let load = self.lab.load(sample::client(), "load-enrol", &self.target())?;
        load.run_on(Duration::from_secs(1));
        self.lab.label_namespace(NAMESPACE, MESH_LABEL, Some(ENROLLED))?;
        self.wait(true)?;
        self.observe(true, "the node agents report client, web and redis captured; nothing was restarted");
        load.run_on(Duration::from_secs(2));
        self.report(&load.finish()?, "meanwhile");
        Ok(())
    }

    fn with_the_mesh(&self, before: &latency::Latency) -> Result<()> {
        heading("3. The same calls again");
        // Captured is reported before every proxy has heard of it, and till then calls are let through as they come.
        let wire = eventually(PATIENCE, "both proxies to know of the pods", || {
            let wire = self.watch(|| self.use_the_services())?;
            ensure!(wire.on_port(HBONE_PORT).bytes() > 0 && !wire.shows(SECRET), "calls are in plaintext yet");
            Ok(wire)
        });
        let wire = match wire {
            Ok(wire) => wire,
            Err(_) => self.watch(|| self.use_the_services())?,
        };
        let tunnels = wire.on_port(HBONE_PORT);
        self.observe(!wire.shows(PAGE) && !wire.shows(SECRET), &format!("between the nodes: {}", readable(&wire)));
        self.observe(
            tunnels.tls_records() > 0,
            &format!(
                "{} of {} bytes went over port {HBONE_PORT}, where {} packets begin with a TLS record",
                tunnels.bytes(),
                wire.bytes(),
                tunnels.tls_records()
            ),
        );
        self.identities()?;
        let latency = latency::measure(&self.lab)?;
        note(&format!("a Redis ping, from node to node: {latency}"));
        note(&format!("that is {:+.0} µs at the median of the mesh in a debug build", latency.over(before)));
        Ok(())
    }

    /// Both names as node-b's proxy wrote them into its access log.
    fn identities(&self) -> Result<()> {
        let seen = eventually(PATIENCE, "an access line with both identities", || {
            for line in self.lab.access_log("node-b")?.iter().rev() {
                let text = |key: &str| line.get(key).and_then(serde_json::Value::as_str);
                if let (Some("inbound"), Some(source), Some(destination)) =
                    (text("direction"), text("src.identity"), text("dst.identity"))
                {
                    return Ok((source.to_owned(), destination.to_owned()));
                }
            }
            bail!("none in node-b's access log")
        });
        match seen {
            Ok((source, destination)) => {
                self.observe(true, "node-b's proxy knows both ends by their certificates:");
                note(&format!("from {source}"));
                note(&format!("to   {destination}"));
            }
            Err(error) => self.observe(false, &format!("{error:#}")),
        }
        Ok(())
    }

    fn beyond_the_mesh(&self) -> Result<()> {
        heading("4. The rest of the world is still reached, and reaches in; closed ports stay closed");
        let web = self.lab.pod(&sample::pod("web"))?;
        let url = format!("http://{}:8080/", web.v4()?);
        let from_outside = self.lab.run(Place::Outside, &["curl", "-sS", "--max-time", "5", &url], PATIENCE)?.ok();
        self.observe(
            from_outside.is_ok_and(|page| page.trim() == PAGE),
            "a host outside the mesh gets the page from web's pod, in plaintext",
        );

        let server = self.lab.spawn(
            Place::Outside,
            "http",
            &["python3", "-m", "http.server", "9090", "--directory", "/var/empty"],
        )?;
        let to_outside = eventually(PATIENCE, "the host outside", || {
            self.client(&[
                "curl",
                "-sS",
                "--max-time",
                "5",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "http://172.30.0.100:9090/",
            ])
        });
        server.kill()?;
        self.observe(
            to_outside.is_ok(),
            "the captured client gets an answer from that host, which knows nothing of the mesh",
        );

        let probe = |port: u16| self.lab.probe("node-b", &Probe::TcpSocket { address: (web.v4()?, port).into() });
        let (open, closed) = (probe(8080)?, probe(8081)?);
        self.observe(
            open.success && !closed.success,
            &format!("a kubelet's probe of web: port 8080 {}, port 8081 {}", open.detail, closed.detail),
        );
        Ok(())
    }

    fn leave_under_load(&self) -> Result<()> {
        heading("5. Removing the label releases running pods, under load");
        note(&format!("namespace {NAMESPACE}: {MESH_LABEL} removed"));
        let load = self.lab.load(sample::client(), "load-leave", &self.target())?;
        load.run_on(Duration::from_secs(1));
        self.lab.label_namespace(NAMESPACE, MESH_LABEL, None)?;
        let plain = eventually(PATIENCE, "new calls to be plain again", || {
            let wire = self.watch(|| self.use_the_services())?;
            ensure!(wire.shows(SECRET), "calls are encrypted yet");
            Ok(())
        });
        self.observe(plain.is_ok(), "new calls go without the mesh again, what was open stays with it to its end");
        load.run_on(Duration::from_secs(1));
        self.report(&load.finish()?, "meanwhile");
        self.observe(self.wait(false).is_ok(), "the last captured connection has ended, the node agents report no pod");
        let rules = self.rules_left()?;
        self.observe(rules.is_empty(), &format!("rules left in the pods' network namespaces: {}", rules.len()));
        rules.iter().for_each(|rule| note(rule));
        Ok(())
    }

    /// Tables of packet rules in the sample's pods, and routing rules besides those that every namespace has.
    fn rules_left(&self) -> Result<Vec<String>> {
        const EVERYWHERE: [&str; 3] = ["lookup local", "lookup main", "lookup default"];
        let mut left = Vec::new();
        for name in ["client", "web", "redis"] {
            let run = |argv: &[&str]| self.lab.run(&sample::pod(name), argv, PATIENCE)?.ok();
            let mut found = run(&["nft", "list", "tables"])?;
            for family in ["-4", "-6"] {
                found.push_str(&run(&["ip", family, "rule"])?);
            }
            let lines =
                found.lines().map(str::trim).filter(|line| !EVERYWHERE.iter().any(|known| line.ends_with(known)));
            left.extend(lines.map(|line| format!("{name}: {line}")));
        }
        Ok(left)
    }

    fn end(&self) -> ExitCode {
        let alone = Lab::names_by_hand().len() < 2;
        let lab = if alone { "./x lab".to_owned() } else { format!("./x lab --name {}", self.lab.options().name) };
        heading("The lab stays up. Next, try");
        note(&format!("{lab} label namespace {NAMESPACE} {MESH_LABEL}={ENROLLED}"));
        note(&format!("{lab} exec client -- curl -s http://web/"));
        note(&format!("{lab} down"));
        if self.failed.get() {
            bad(&format!("something above was not as it should be; see the logs: `{lab} logs`"));
            return ExitCode::FAILURE;
        }
        ExitCode::SUCCESS
    }
}
