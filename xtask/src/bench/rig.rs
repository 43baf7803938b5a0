//! The servers and clients of a run, on loopback, with keys that live as long as it does.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::classic;
use super::process::{self, Snapshot};
use super::rows::Contender;
use crate::failure::{Failure, Result};
use crate::workspace::{Workspace, find_program, run_step, shown};

const START_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// What makes OpenSSH fast: no post-quantum exchange, and the cipher that its CPU instructions like.
const FAST: [&str; 4] =
    ["-o", "KexAlgorithms=curve25519-sha256", "-o", "Ciphers=aes128-gcm@openssh.com"];

/// Everything that a run started. Dropping it ends all of that, each process by its pid.
#[derive(Debug)]
pub(super) struct Rig {
    /// Keys, homes, logs. Below the target directory, because `/tmp` is writable by all, which
    /// rightly makes servers refuse an `authorized_keys` there.
    files: TempDir,
    /// Sockets: their paths have to be short.
    sockets: TempDir,
    user: String,
    sshd: Server,
    dropbear: Server,
    master: Server,
    script: Server,
    afar: Option<Afar>,
}

#[derive(Debug)]
struct Server {
    pid: u32,
    port: u16,
    /// How many processes it is when nobody is connected.
    processes_idle: usize,
}

#[derive(Debug)]
struct Afar {
    program: PathBuf,
    server: Server,
    classic_port: u16,
}

/// A server's processor time so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct CpuSeconds(pub(super) f64);

impl Rig {
    /// Starts the peers, and `afar serve` if there is an afar.
    pub(super) fn start(workspace: &Workspace, afar: Option<&Path>) -> Result<Self> {
        process::adopt_orphans().map_err(Failure::io("become the parent of orphans"))?;
        let target = workspace.built("release", "");
        fs::create_dir_all(&target).map_err(Failure::io("create the target directory"))?;
        let private = |builder: &mut tempfile::Builder<'_, '_>| -> std::io::Result<TempDir> {
            builder.permissions(fs::Permissions::from_mode(0o700));
            builder.tempdir_in(&target)
        };
        let files = private(tempfile::Builder::new().prefix("bench-"))
            .map_err(Failure::io("create a directory"))?;
        let sockets = tempfile::Builder::new()
            .prefix("afar-bench-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .map_err(Failure::io("create a directory"))?;
        let none = || Server { pid: 0, port: 0, processes_idle: 0 };
        // From here on the rig exists, and its drop ends whatever has been started by then.
        let mut rig = Self {
            files,
            sockets,
            user: output_of(Command::new("id").arg("-un"))?.trim().to_owned(),
            sshd: none(),
            dropbear: none(),
            master: none(),
            script: none(),
            afar: None,
        };
        rig.prepare()?;
        rig.sshd = rig.start_sshd()?;
        rig.dropbear = rig.start_dropbear()?;
        rig.master = rig.start_master()?;
        rig.script = rig.start_script()?;
        if let Some(program) = afar {
            rig.afar = Some(rig.start_afar(program)?);
        }
        Ok(rig)
    }

    /// The command that has `remote` run by `contender`'s server, for `Local` by nobody's. Its
    /// stdin is closed and its stderr in the log until the caller says otherwise.
    pub(super) fn client(&self, contender: Contender, remote: &[&str]) -> Result<Command> {
        let mut command = match contender {
            Contender::Local | Contender::BareTls => {
                let (name, arguments) = remote.split_first().unwrap_or((&"true", &[]));
                let mut command = Command::new(program(name)?);
                command.args(arguments);
                command
            }
            Contender::Ssh => self.ssh(&[], remote)?,
            Contender::SshFast => self.ssh(&FAST, remote)?,
            Contender::SshWarm => {
                let control = self.sockets.path().join("ssh");
                self.ssh(&["-S", &control.to_string_lossy()], remote)?
            }
            Contender::Dbclient => self.dbclient(&[], remote)?,
            Contender::Script => {
                let message = "the script speaks the classic protocol only";
                return Err(Failure::Check(message.to_owned()));
            }
            Contender::Afar => {
                let mut command = Command::new(self.afar_program()?);
                command.args(["run", "-q", "-F", "/dev/null"]);
                command.args(self.afar_target()?).arg("--").args(remote);
                command
            }
        };
        self.environment(&mut command).stdin(Stdio::null()).stderr(self.log("clients")?);
        Ok(command)
    }

    /// The same for dbclient under xargs, which puts a number for `{}`: another loopback address
    /// each time, because dropbear refuses the sixth connection that one address has not yet
    /// authenticated (MAX_UNAUTH_PER_IP), and eight at once from one address would fail.
    pub(super) fn dbclient_from_many_addresses(&self, remote: &[&str]) -> Result<Command> {
        let mut command = self.dbclient(&["-b", "127.0.0.{}"], remote)?;
        self.environment(&mut command).stdin(Stdio::null()).stderr(self.log("clients")?);
        Ok(command)
    }

    /// The classic protocol's client, for so many commands.
    pub(super) fn classic_client(&self, contender: Contender, count: u64) -> Result<Command> {
        let afar = self.afar.as_ref().filter(|_| contender == Contender::Afar);
        let port = afar.map_or(self.script.port, |afar| afar.classic_port);
        let mut command = classic::client(self.files.path(), port, count)?;
        command.stderr(self.log("clients")?);
        Ok(command)
    }

    /// The command line of a helper that uses afar's library: the target, and what proves both ends.
    pub(super) fn afar_helper(&self, program: &Path) -> Result<Command> {
        let mut command = Command::new(program);
        command.args(self.afar_target()?);
        self.environment(&mut command).stdin(Stdio::null()).stderr(self.log("clients")?);
        Ok(command)
    }

    /// The processor time that the server of `contender` has taken, once it is idle again.
    pub(super) fn server_cpu(&self, contender: Contender) -> CpuSeconds {
        let seconds = match contender {
            Contender::Local | Contender::BareTls | Contender::Script => 0.0,
            Contender::Ssh | Contender::SshFast | Contender::SshWarm => {
                let tree = |snapshot: &Snapshot| snapshot.tree(self.sshd.pid);
                process::settled_seconds(self.sshd.processes_idle, tree)
            }
            Contender::Dbclient => {
                let tree = |snapshot: &Snapshot| snapshot.tree(self.dropbear.pid);
                process::settled_seconds(self.dropbear.processes_idle, tree)
            }
            Contender::Afar => {
                let idle = self.afar.as_ref().map_or(0, |afar| afar.server.processes_idle);
                process::settled_seconds(idle, |snapshot| self.afar_processes(snapshot))
            }
        };
        CpuSeconds(seconds)
    }

    /// To be called once every server has served: what stays then is what stays (afar starts a
    /// user's supervisor with that user's first command).
    pub(super) fn note_idle(&mut self) {
        let deadline = Instant::now() + Duration::from_millis(500);
        let count = |rig: &Self| {
            let sshd = process::running(|snapshot| snapshot.tree(rig.sshd.pid));
            let dropbear = process::running(|snapshot| snapshot.tree(rig.dropbear.pid));
            (sshd, dropbear, process::running(|snapshot| rig.afar_processes(snapshot)))
        };
        // The least that is seen within a moment: processes of the last connection may still end.
        let mut least = count(self);
        while Instant::now() < deadline {
            let now = count(self);
            least = (least.0.min(now.0), least.1.min(now.1), least.2.min(now.2));
            std::thread::sleep(POLL);
        }
        self.sshd.processes_idle = least.0;
        self.dropbear.processes_idle = least.1;
        if let Some(afar) = &mut self.afar {
            afar.server.processes_idle = least.2;
        }
    }

    /// A file in the run's own directory.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The end of what the clients and servers said, for an error message.
    pub(super) fn last_words(&self) -> String {
        let mut words = String::new();
        for name in ["clients", "sshd", "dropbear", "afar"] {
            let text = fs::read_to_string(self.file(&format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(5)) {
                words.push_str(&format!("\n  {name}: {line}"));
            }
        }
        words
    }

    /// All of ours that belongs to nobody else. Nothing else of ours runs when this is asked.
    fn afar_processes(&self, snapshot: &Snapshot) -> BTreeSet<u32> {
        snapshot.ours_without(&[self.sshd.pid, self.dropbear.pid, self.master.pid])
    }

    fn ssh(&self, options: &[&str], remote: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("ssh")?);
        command
            .args(["-F", "/dev/null", "-T", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "IdentityAgent=none", "-o", "GlobalKnownHostsFile=/dev/null"])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", self.file("known_hosts").display()))
            .arg("-i")
            .arg(self.file("user"))
            .args(["-p", &self.sshd.port.to_string()])
            .args(options)
            .arg(format!("{}@127.0.0.1", self.user));
        if !remote.is_empty() {
            command.arg(remote.join(" "));
        }
        Ok(command)
    }

    fn dbclient(&self, options: &[&str], remote: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("dbclient")?);
        command
            .args(["-y", "-i"])
            .arg(self.file("user_dropbear"))
            .args(["-p", &self.dropbear.port.to_string()])
            .args(options)
            .arg(format!("{}@127.0.0.1", self.user))
            .arg(remote.join(" "));
        Ok(command)
    }

    fn afar_program(&self) -> Result<&Path> {
        self.afar
            .as_ref()
            .map(|afar| afar.program.as_path())
            .ok_or_else(|| Failure::Check("afar: binary not built".to_owned()))
    }

    fn afar_target(&self) -> Result<Vec<String>> {
        self.afar_program()?;
        let port = self.afar.as_ref().map_or(0, |afar| afar.server.port);
        Ok(vec![
            format!("{}@127.0.0.1:{port}", self.user),
            "-i".to_owned(),
            self.file("user").display().to_string(),
            "--known-hosts".to_owned(),
            self.file("known_hosts").display().to_string(),
        ])
    }

    /// Nothing of the person who runs this: no agent, no files of theirs.
    fn environment<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env_remove("SSH_AUTH_SOCK")
            .env("HOME", self.file("home"))
            .env("XDG_RUNTIME_DIR", self.sockets.path())
            .env("XDG_STATE_HOME", self.file("home/state"))
            .env("XDG_CONFIG_HOME", self.file("home/config"))
            .env("XDG_DATA_HOME", self.file("home/data"))
            .env("XDG_CACHE_HOME", self.file("home/cache"))
    }

    /// Makes the keys, the home and the library that gives it to the ssh servers.
    fn prepare(&self) -> Result<()> {
        for directory in ["home", "home/.ssh"] {
            let path = self.file(directory);
            fs::create_dir_all(&path).map_err(Failure::io("create a home"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
                .map_err(Failure::io("set permissions"))?;
        }
        for key in ["host", "user"] {
            let mut command = Command::new(program("ssh-keygen")?);
            command
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f"])
                .arg(self.file(key));
            output_of(&mut command)?;
        }
        let mut authorized = self.read("user.pub")?;
        for key in ["host_dropbear", "user_dropbear"] {
            let mut command = Command::new(program("dropbearkey")?);
            command.args(["-t", "ed25519", "-f"]).arg(self.file(key));
            let said = output_of(&mut command)?;
            if key == "user_dropbear" {
                authorized.extend(said.lines().filter(|line| line.starts_with("ssh-ed25519 ")));
                authorized.push('\n');
            }
        }
        self.write("home/.ssh/authorized_keys", &authorized)?;
        self.write("passwd_home.c", include_str!("passwd_home.c"))?;
        let mut compile = Command::new(program("cc")?);
        compile.args(["-shared", "-fPIC", "-O2", "-o"]).arg(self.file("passwd_home.so"));
        run_step(compile.arg(self.file("passwd_home.c")).arg("-ldl"))
    }

    fn start_sshd(&self) -> Result<Server> {
        let port = free_port()?;
        let configuration = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nPidFile none\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n\
             AuthorizedKeysFile .ssh/authorized_keys\nMaxStartups 1000\nMaxSessions 1000\n\
             PrintMotd no\nPrintLastLog no\nUseDNS no\nLogLevel ERROR\n",
            self.file("host").display()
        );
        self.write("sshd_config", &configuration)?;
        self.know_host(port)?;
        // sshd re-executes itself for each connection, and insists on its absolute path.
        let mut command = Command::new(program("sshd")?);
        command.args(["-D", "-e", "-f"]).arg(self.file("sshd_config"));
        self.start_listening(&mut command, "sshd", port)
    }

    fn start_dropbear(&self) -> Result<Server> {
        let port = free_port()?;
        let mut command = Command::new(program("dropbear")?);
        command
            .args(["-F", "-E", "-m", "-s", "-p", &format!("127.0.0.1:{port}"), "-P"])
            .arg(self.file("dropbear.pid"))
            .arg("-r")
            .arg(self.file("host_dropbear"));
        self.start_listening(&mut command, "dropbear", port)
    }

    /// Starts a server that has been told its port, and waits until it accepts there.
    fn start_listening(&self, command: &mut Command, name: &str, port: u16) -> Result<Server> {
        let mut child = command
            .env("LD_PRELOAD", self.file("passwd_home.so"))
            .env("BENCH_HOME", self.file("home"))
            .stdin(Stdio::null())
            .stdout(self.log(name)?)
            .stderr(self.log(name)?)
            .spawn()
            .map_err(Failure::io(format!("start `{}`", shown(command))))?;
        self.wait_for(&mut child, name, || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        Ok(Server { pid: child.id(), port, processes_idle: 1 })
    }

    /// The connection that warm ssh commands share.
    fn start_master(&self) -> Result<Server> {
        let control = self.sockets.path().join("ssh");
        let control = control.to_string_lossy();
        let mut child = self
            .ssh(&["-M", "-N", "-S", &control], &[])?
            .stdin(Stdio::null())
            .stderr(self.log("clients")?)
            .spawn()
            .map_err(Failure::io("start ssh -M"))?;
        self.wait_for(&mut child, "ssh -M", || Path::new(&*control).exists())?;
        Ok(Server { pid: child.id(), port: 0, processes_idle: 1 })
    }

    fn start_script(&self) -> Result<Server> {
        classic::prepare(self.files.path())?;
        let port = free_port()?;
        let mut child = classic::server(self.files.path(), port)?
            .stdin(Stdio::null())
            .stdout(self.log("script")?)
            .stderr(self.log("script")?)
            .spawn()
            .map_err(Failure::io("start the script"))?;
        self.wait_for(&mut child, "the script", || classic::listens(port))?;
        Ok(Server { pid: child.id(), port, processes_idle: 1 })
    }

    fn start_afar(&self, program: &Path) -> Result<Afar> {
        let ready = self.file("afar.ready");
        let mut command = Command::new(program);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--ready-file"])
            .arg(&ready)
            .args(["--classic", "127.0.0.1:0", "--classic-user", &self.user])
            .arg("--host-key")
            .arg(self.file("host"))
            .arg("--authorized-keys")
            .arg(self.file("home/.ssh/authorized_keys"))
            .stdin(Stdio::null())
            .stdout(self.log("afar")?)
            .stderr(self.log("afar")?);
        let mut child = self
            .environment(&mut command)
            .spawn()
            .map_err(Failure::io(format!("start {} serve", program.display())))?;
        let address = || fs::read_to_string(&ready).ok().filter(|text| text.ends_with('\n'));
        self.wait_for(&mut child, "afar serve", || address().is_some())?;
        let text = address().unwrap_or_default();
        let ports: Option<Vec<u16>> =
            text.lines().map(|line| line.rsplit_once(':')?.1.parse().ok()).collect();
        let Some(&[port, classic_port]) = ports.as_deref() else {
            let message = format!("the ready file of afar serve holds no two addresses: {text:?}");
            return Err(Failure::Check(message));
        };
        self.know_host(port)?;
        let server = Server { pid: child.id(), port, processes_idle: 1 };
        Ok(Afar { program: program.to_owned(), server, classic_port })
    }

    fn wait_for(&self, child: &mut Child, name: &str, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        while !ready() {
            let ended = child.try_wait().map_err(Failure::io(format!("wait for {name}")))?;
            if let Some(status) = ended {
                let words = self.last_words();
                return Err(Failure::Check(format!("{name} ended at once: {status}{words}")));
            }
            if Instant::now() > deadline {
                let words = self.last_words();
                return Err(Failure::Check(format!("{name} did not become ready{words}")));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Adds the host key under a port to the file that ssh and afar know hosts from.
    fn know_host(&self, port: u16) -> Result<()> {
        let known = fs::read_to_string(self.file("known_hosts")).unwrap_or_default();
        let key = self.read("host.pub")?;
        self.write("known_hosts", &format!("{known}[127.0.0.1]:{port} {key}"))
    }

    fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.file(name)).map_err(Failure::io(format!("read {name}")))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.file(name);
        fs::write(&path, text).map_err(Failure::io(format!("write {name}")))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(Failure::io("set permissions"))
    }

    fn log(&self, name: &str) -> Result<File> {
        let path = self.file(&format!("{name}.log"));
        let mut options = OpenOptions::new();
        options.create(true).append(true).open(path).map_err(Failure::io("open a log"))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        process::end_all();
    }
}

/// Runs a small command and gives back its stdout.
fn output_of(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output =
        command.stdin(Stdio::null()).output().map_err(Failure::io(format!("run `{shown}`")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        return Err(Failure::Check(format!("`{shown}` failed: {}: {said}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(super) fn program(name: &str) -> Result<PathBuf> {
    find_program(name).ok_or_else(|| Failure::Environment(format!("{name} is not installed")))
}

/// A port nobody listens on now. Somebody could take it before our server does, which then fails
/// loudly.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(Failure::io("bind a loopback port"))?;
    Ok(listener.local_addr().map_err(Failure::io("read a socket's address"))?.port())
}
