//! A lab as a whole: up, found again, down.

use std::{fs, ops::Deref, os::unix::fs::DirBuilderExt as _, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cni::Chain,
    config::{self, Options, check_name},
    netns,
    objects::{Manifests, ObjectName},
    paths::{NETNS_ETC, Paths, ROOT},
    place::Place,
    preflight,
    process::{Process, end_all, start_time},
    services, topology,
    wait::{self, eventually},
};

/// What the network namespaces of the node agent's own tests begin with.
const AGENT_TESTS: &str = "upa-";

/// A running lab. Several values may stand for the same one; all its state is on disk.
#[derive(Clone, Debug)]
pub struct Lab {
    options: Options,
    paths: Paths,
    manifests: Manifests,
}

impl Lab {
    /// Makes a lab and starts the mesh in it.
    ///
    /// # Errors
    /// If something is missing on this machine, a lab of this name runs, or a program does not start; then nothing stays.
    pub fn up(options: Options) -> Result<Self> {
        Self::up_with(options, &mut |_| (), |_, _| Ok(()))
    }

    /// [`Self::up`] with more in it, telling each step before it is taken.
    ///
    /// # Errors
    /// As [`Self::up`]; also when `furnish` fails, or somebody [interrupts](crate::interrupt).
    pub fn up_with(
        options: Options,
        tell: &mut dyn FnMut(&str),
        furnish: impl FnOnce(&Self, &mut dyn FnMut(&str)) -> Result<()>,
    ) -> Result<Self> {
        check_name(&options.name)?;
        preflight::check(&options)?;
        let name = options.name.clone();
        fs::create_dir_all(ROOT)?;
        let paths = Paths::new(&name);
        if let Err(error) = fs::create_dir(paths.root()) {
            ensure!(
                error.kind() != std::io::ErrorKind::AlreadyExists,
                "a lab called {name} is there already: take it down with `underpass lab down --name {name}`, or choose another name"
            );
            return Err(error).context(paths.root().display().to_string());
        }
        let lab = Self::with(options, paths);
        let Err(error) = lab.build(tell).and_then(|()| furnish(&lab, tell)) else { return Ok(lab) };
        // With the logs it explains itself, unless somebody knows why it ended; without the lab they would be gone.
        let logs = if wait::uninterrupted().is_ok() { lab.last_words() } else { String::new() };
        let down = if config::keep() { None } else { Some(Self::down(&name)) };
        let left = match down {
            None => "all of it is kept".to_owned(),
            Some(Ok(_)) => "nothing of it is left".to_owned(),
            Some(Err(error)) => format!("`underpass lab down --name {name}` removes what is left ({error:#})"),
        };
        bail!("lab {name} did not come up: {error:#}; {left}{logs}");
    }

    pub(crate) fn with(options: Options, paths: Paths) -> Self {
        let manifests = Manifests::new(paths.objects(), paths.staging(), paths.manifest_lock());
        Self { options, paths, manifests }
    }

    fn build(&self, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let paths = &self.paths;
        for directory in
            [paths.objects(), paths.staging(), paths.status(), paths.logs(), paths.pids(), paths.captures()]
        {
            fs::create_dir(directory)?;
        }
        fs::DirBuilder::new().mode(0o700).create(paths.memory()).context("a directory in memory for keys")?;
        fs::write(paths.description(), serde_json::to_vec_pretty(&self.options)?)?;
        tell("joining the nodes' network namespaces by a bridge");
        topology::build(paths, &self.options)?;
        for (index, node) in self.options.node_names().iter().enumerate() {
            fs::create_dir(paths.node(node))?;
            self.manifests
                .write(&ObjectName::new("Node", None, node), topology::node_manifest(&self.options, index, node))?;
            let ours = self.options.mesh.then(|| self.plugin_config(node));
            topology::write_conflist(paths, &self.options, (index, node), ours)?;
        }
        self.refresh_names()?;
        self.start_probers()?;
        if self.options.mesh {
            self.start_mesh(tell)?;
        }
        Ok(())
    }

    /// Finds a lab that is up.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn attach(name: &str) -> Result<Self> {
        check_name(name)?;
        let paths = Paths::new(name);
        let text = match fs::read(paths.description()) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("no lab called {name} is up: start it with `underpass lab up --name {name}`")
            }
            Err(error) => return Err(error).with_context(|| format!("reading {}", paths.description().display())),
        };
        Ok(Self::with(serde_json::from_slice(&text)?, paths))
    }

    /// The names of all labs that are up, or left something behind.
    #[must_use]
    pub fn names() -> Vec<String> {
        let of_directory = fs::read_dir(ROOT).into_iter().flatten();
        let mut names: Vec<String> =
            of_directory.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        let namespaces = netns::named("up-");
        names
            .extend(namespaces.iter().filter_map(|name| Some(name.strip_prefix("up-")?.split_once('-')?.0.to_owned())));
        names.sort();
        names.dedup();
        names.retain(|name| check_name(name).is_ok());
        names
    }

    /// The labs that somebody started by hand, those of tests left out.
    #[must_use]
    pub fn names_by_hand() -> Vec<String> {
        let of_a_test = |name: &String| Self::attach(name).is_ok_and(|lab| lab.options.owner.is_some());
        Self::names().into_iter().filter(|name| !of_a_test(name)).collect()
    }

    /// A number that no lab has: 0 if it is free, else one far from those of tests, which count from 1.
    #[must_use]
    pub fn free_number() -> u8 {
        let labs = Self::names().into_iter().filter_map(|name| Self::attach(&name).ok());
        let taken: Vec<u8> = labs.map(|lab| lab.options.number).collect();
        let candidates = std::iter::once(0).chain((1..topology::NUMBERS).rev());
        // With more labs than numbers two of them share one, which only confuses an agent that lost its memory.
        candidates.into_iter().find(|number| !taken.contains(number)).unwrap_or_default()
    }

    /// Removes everything of a lab: programs, namespaces, files. Also what a crash left; tells whether there was any. Of
    /// several at once the others wait for the first.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn down(name: &str) -> Result<bool> {
        check_name(name)?;
        wait::go_on();
        let paths = Paths::new(name);
        // Of the directory itself, which goes with the lab: whoever waited finds nothing then.
        let alone = fs::File::open(paths.root());
        if let Ok(directory) = &alone {
            directory.lock().context("waiting for another one that takes this lab down")?;
        }
        let namespaces = netns::named(&paths.prefix());
        let existed = paths.root().exists() || !namespaces.is_empty();
        let mut pids: Vec<i32> =
            Self::recorded(&paths).iter().filter(|process| process.is_alive()).map(|process| process.pid).collect();
        for namespace in &namespaces {
            pids.extend(netns::processes(namespace)?);
        }
        pids.sort_unstable();
        pids.dedup();
        end_all(&pids);
        for namespace in &namespaces {
            netns::remove(namespace)?;
        }
        for directory in [&paths.memory(), paths.root()].into_iter().filter(|directory| directory.exists()) {
            fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
        }
        for shared in [ROOT, NETNS_ETC] {
            // Fails, as it should, while another lab uses it.
            fs::remove_dir(shared).ok();
        }
        Ok(existed)
    }

    fn recorded(paths: &Paths) -> Vec<Process> {
        let files = fs::read_dir(paths.pids()).into_iter().flatten();
        files.filter_map(|entry| serde_json::from_slice(&fs::read(entry.ok()?.path()).ok()?).ok()).collect()
    }

    /// The programs that the lab started and that are remembered, whether they still run or not.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        let mut found = Self::recorded(&self.paths);
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// How the lab was made.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Where its files are.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    pub(crate) fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Writes or replaces the objects of a text of manifests.
    ///
    /// # Errors
    /// If a document is no object. Objects before a failing one are written.
    pub fn apply(&self, yaml: &str) -> Result<Vec<ObjectName>> {
        let names = self.manifests.apply(yaml)?;
        self.refresh_names()?;
        Ok(names)
    }

    /// Removes an object that is no pod.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn delete(&self, name: &ObjectName) -> Result<()> {
        ensure!(name.kind != "Pod", "a pod is more than its manifest: use `pod delete`");
        ensure!(self.manifests.find(name)?.is_some(), "there is no {} {} in this lab", name.kind, name.name);
        self.manifests.remove(name)?;
        self.refresh_names()
    }

    /// Brings names and service addresses up to date with the manifests.
    pub(crate) fn refresh_names(&self) -> Result<()> {
        let lock = fs::OpenOptions::new().create(true).append(true).open(self.paths.names_lock())?;
        lock.lock().context("taking the lock of names")?;
        let (services, pods) = (self.manifests.all("Service")?, self.manifests.all("Pod")?);
        let mut namespaces = vec![None];
        namespaces.extend(self.namespaces()?.into_iter().map(Some));
        for namespace in &namespaces {
            let namespace = namespace.as_deref();
            write_changed(&self.paths.hosts(namespace), &services::hosts(namespace, &services, &pods))?;
        }
        for node in self.options.node_names() {
            let bridged = Path::new("/proc/sys/net/bridge").exists();
            let rules = services::rules(&services, &pods, bridged);
            let file = self.paths.node(&node).join("services.nft");
            if fs::read_to_string(&file).is_ok_and(|loaded| loaded == rules) {
                continue;
            }
            netns::nft(&self.paths.namespace(&Place::Node(node)), &rules)?;
            fs::write(&file, rules)?;
        }
        Ok(())
    }

    pub(crate) fn chain(&self, node: &str) -> Chain {
        let directory = self.paths.node(node);
        Chain {
            node_namespace: self.paths.namespace(&Place::node(node)),
            conflist: directory.join("lab.conflist"),
            cache: directory.join("cni"),
            binaries: self.options.binaries.clone(),
        }
    }

    /// The last lines of every program's log, for the error of a lab that did not come up.
    fn last_words(&self) -> String {
        let mut text = String::new();
        for process in self.processes() {
            let output = process.output();
            let lines: Vec<&str> = output.lines().collect();
            let last =
                lines.iter().skip(lines.len().saturating_sub(10)).map(|line| format!("\n  {line}")).collect::<String>();
            if !last.is_empty() {
                text.push_str(&format!("\n{}:{last}", process.name));
            }
        }
        text
    }
}

/// Rewrites a file in place, as it may be bound into namespaces by its inode, and only when it changes.
fn write_changed(file: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(file).is_ok_and(|present| present == text) {
        return Ok(());
    }
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// A lab that ends with the scope it is used in: for tests. `UNDERPASS_LAB_KEEP=1` keeps it.
#[derive(Debug)]
pub struct ScopedLab(Lab);

impl ScopedLab {
    /// Makes a lab of a name that no other test uses, after removing labs of test runs that died.
    ///
    /// # Errors
    /// As [`Lab::up`].
    pub fn up(change: impl FnOnce(&mut Options)) -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let pid = i32::try_from(std::process::id())?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            remove_orphans();
        }
        let mut options = Options::new(&format!("t{pid}x{number}"))?;
        // Test runs that go on at the same time should differ, too.
        let somewhere = std::process::id().wrapping_mul(31).wrapping_add(number);
        options.number = 1 + u8::try_from(somewhere % u32::from(topology::NUMBERS - 1))?;
        options.owner = start_time(pid).map(|started| (pid, started));
        change(&mut options);
        Lab::up(options).map(Self)
    }
}

impl Deref for ScopedLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for ScopedLab {
    fn drop(&mut self) {
        if !config::keep() {
            let name = &self.0.options.name;
            // A process in the middle of starting may hold a namespace for an instant.
            eventually(Duration::from_secs(10), "the lab to go down", || Lab::down(name)).ok();
        }
    }
}

/// Removes labs whose owner, a test run, is no more.
fn remove_orphans() {
    for name in Lab::names() {
        let owner = Lab::attach(&name).ok().and_then(|lab| lab.options.owner);
        if owner.is_some_and(|(pid, started)| start_time(pid) != Some(started)) {
            Lab::down(&name).ok();
        }
    }
    remove_strays();
}

/// Removes network namespaces of the node agent's own tests whose process is no more: `upa-PLACE-PROCESS-NUMBER`.
fn remove_strays() {
    for name in netns::named(AGENT_TESTS) {
        let process = name.rsplit('-').nth(1).and_then(|pid| pid.parse().ok());
        if process.is_some_and(|pid| start_time(pid).is_none()) {
            end_all(&netns::processes(&name).unwrap_or_default());
            netns::remove(&name).ok();
        }
    }
}
