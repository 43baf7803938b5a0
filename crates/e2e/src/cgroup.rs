//! A cgroup of the test's own, delegated as systemd delegates one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{XattrFlags, setxattr};

/// A part of the cgroup hierarchy (version 2) with a place for a listener in it. Whatever is still in it is
/// killed when this is dropped, and it is removed.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new one. Where none can be made that is said, past the capturing of tests' output; and where
    /// the tests are there to be counted (`CI`), it fails.
    ///
    /// # Panics
    /// In CI, when there is no cgroup v2 that can be written.
    #[must_use]
    pub fn new() -> Option<Self> {
        let made = Self::make();
        if made.is_none() {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to make cgroups");
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            let mut stderr = std::io::stderr();
            let said = format!("SKIPPED, no cgroup v2 can be written: {test}\n");
            let _ = std::io::Write::write_all(&mut stderr, said.as_bytes());
        }
        made
    }

    fn make() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = hierarchy()?.join(format!("afar-e2e-{}-{count}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let cgroup = Self { path };
        setxattr(&cgroup.path, "user.delegate", b"1", XattrFlags::empty()).ok()?;
        fs::create_dir(cgroup.listener()).ok()?;
        Some(cgroup)
    }

    /// Where the listener is to be.
    #[must_use]
    pub fn listener(&self) -> PathBuf {
        self.path.join("listener")
    }

    /// The words that start a program there, to be put before it.
    ///
    /// # Panics
    /// Never: the rig's paths are UTF-8.
    #[must_use]
    pub fn starter(&self) -> [String; 4] {
        let place = self.listener().join("cgroup.procs");
        let script = format!("echo $$ >{} && exec \"$@\"", place.display());
        ["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()]
    }

    /// The cgroups of a user's jobs.
    ///
    /// # Panics
    /// There is no slice of that user.
    #[must_use]
    pub fn jobs(&self, uid: u32) -> Vec<PathBuf> {
        let slice = self.path.join(format!("afar-{uid}"));
        let listed = fs::read_dir(slice).expect("the supervisor has made its slice");
        let paths = listed.flatten().map(|entry| entry.path());
        let is_job = |path: &Path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("job-"))
        };
        paths.filter(|path| is_job(path)).collect()
    }

    /// The processes of the supervisor's place.
    ///
    /// # Panics
    /// There is no slice of that user.
    #[must_use]
    pub fn supervisors(&self, uid: u32) -> Vec<u32> {
        processes(&self.path.join(format!("afar-{uid}/supervisor")))
    }
}

/// The processes of a cgroup.
fn processes(cgroup: &Path) -> Vec<u32> {
    let listed = fs::read_to_string(cgroup.join("cgroup.procs")).expect("the cgroup is there");
    listed.lines().filter_map(|line| line.parse().ok()).collect()
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let populated = || {
        let events = fs::read_to_string(path.join("cgroup.events"));
        events.is_ok_and(|events| events.contains("populated 1"))
    };
    while populated() {
        std::thread::yield_now();
    }
    let _ = fs::remove_dir(path);
}

/// The root of the hierarchy, where it is mounted so that it can be written.
fn hierarchy() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2" && options.starts_with("rw")).then(|| PathBuf::from(place))
    })
}
