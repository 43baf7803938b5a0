//! From a route to a live session: reach the host, know it, log in, in as few flights as it takes.
//!
//! Whatever has to be asked of a person is asked with no connection open, and the connection is
//! made again with the answer; so one login can take several connections, each for a reason.

mod way;

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use afar_core::target::Target;
use afar_net::agent::UnusableKey;
use afar_net::clock::Clock;
use afar_net::dial::connect_tcp;
use afar_net::host_key::HostPublicKey;
use afar_net::identity::{LockedKey, UnlockError};
use afar_net::login::{Candidate, LoggedIn, Login, LoginError, RejectedHost, login};
use afar_net::public_key::{KeyKind, fingerprint};
use afar_net::signer::{FileKey, SignError, Signer};
use afar_net::tls::{self, Shown, Verdict};
use afar_proto::auth::AuthError;
use afar_proto::limits::AUTH_DEADLINE;
use afar_proto::message::OpenSpec;
use afar_proto::outcome::{Phase, Started};
use afar_proto::{Config, Connection, Role};
use tokio::time::Instant;

use crate::client::{Client, Delegation, HostStanding, InspectedHost};
use crate::error::Error;
use crate::host_keys::{HostKeyProblem, HostKeyQuestion, Judgement};
use crate::identities::{LoadedFiles, OfferedKey, offered, shown_fingerprint};
use crate::job::Job;
use crate::prompt::{Answer, LockedIdentity, Notice};
use crate::route::{self, Route};
use crate::session::{Pipelined, Session};
pub(crate) use way::open;
use way::{Connected, Failed, Way, reconnector};

/// Connections that one login may take: the delegated key, the remembered one, all of them, after
/// the host key was confirmed, after a key was unlocked, and one more.
const CONNECTIONS_MAX: u32 = 6;

/// How often a passphrase is asked for, as in ssh.
const PASSPHRASE_ATTEMPTS: u32 = 3;

/// Connects to the target; with a command, its channel is opened in the same flight.
pub(crate) async fn connect(
    client: &Client,
    target: &Target,
    spec: Option<OpenSpec>,
) -> Result<(Session, Option<Job>), Error> {
    client.in_flight.store(false, Ordering::Relaxed);
    let way = Way::find(client, target)?;
    let mut proved = None;
    let asked = spec.clone();
    let connected = way.connect(client, spec, &mut proved).await;
    let name = way.name().to_owned();
    match (connected, asked) {
        (Ok((driver, pipelined)), _) => {
            Ok(Session::spawn(driver, &name, pipelined, reconnector(client, way, proved)))
        }
        // It left with the login, and the link was lost before the server said whether it let us in:
        // only another connection can tell what became of it.
        (Err(Failed { error, sent_at: Some(sent_at) }), Some(spec))
            if error.started() == Started::Unknown && is_lost_link(&error) =>
        {
            let Some(reconnector) = reconnector(client, way, proved) else { return Err(error) };
            let (session, job) = Session::spawn_lost(&name, (spec, sent_at), reconnector, &error);
            Ok((session, Some(job)))
        }
        (Err(Failed { error, .. }), _) => Err(error),
    }
}

/// Whether it was the link that failed, and not what came over it.
pub(crate) fn is_lost_link(error: &Error) -> bool {
    match error {
        Error::LoginLink { .. } | Error::ConnectTimeout { .. } => true,
        Error::Login { source, .. } => matches!(source, AuthError::Cut | AuthError::TimedOut),
        _ => false,
    }
}

/// See [`Client::keys`].
pub(crate) async fn offered_keys(
    client: &Client,
    target: Option<&Target>,
) -> Result<Vec<OfferedKey>, Error> {
    let sources = match target {
        Some(target) => Route::find(&client.options, target)?.identities,
        None => route::sources_without_target(&client.options)?,
    };
    let files = sources.load_files()?;
    tell_skipped(client, &files);
    let held = sources.agent_keys().await.unwrap_or_default();
    for UnusableKey { comment, reason } in held.unusable {
        let text = format!("the agent's key \"{comment}\" can't be used: {reason}");
        client.options.prompt.notice(&Notice::PassedOver(text));
    }
    let candidates = sources.candidates(files, held.keys);
    Ok(candidates.iter().map(|key| offered(key, sources.agent.as_ref())).collect())
}

/// See [`Client::inspect_host`].
pub(crate) async fn inspect(client: &Client, target: &Target) -> Result<InspectedHost, Error> {
    let route = Route::find(&client.options, target)?;
    let mut connector = Connector::new(client, &route, None);
    let host = connector.look().await?;
    let standing = route.known.judge_shown(&host);
    let key = host.key;
    let (standing, presented) = match standing {
        Judgement::Trusted => (HostStanding::Trusted, route.known.question(&key, &[])),
        Judgement::FirstSight(question) => (HostStanding::FirstSight, question),
        Judgement::NewType(question) => (HostStanding::NewType, question),
        Judgement::Refused(problem) => {
            let presented = problem.presented().clone();
            (HostStanding::Refused(problem), presented)
        }
    };
    let known = route.known.known();
    Ok(InspectedHost { route, key, standing, presented, known })
}

/// Runs what blocks, on the disk or on a person, on a thread of its own.
async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::TaskFailed)
}

fn tell_skipped(client: &Client, files: &LoadedFiles) {
    for error in &files.skipped {
        client.options.prompt.notice(&Notice::PassedOver(error.to_string()));
    }
}

/// The keys for one connection.
struct Attempt {
    candidates: Vec<Candidate>,
    /// One that is used without asking.
    pipeline: Option<usize>,
    kind: Kind,
}

impl Attempt {
    fn new(candidates: Vec<Candidate>, pipeline: Option<usize>, kind: Kind) -> Self {
        Self { candidates, pipeline, kind }
    }

    /// Whether another login by the same key could take a person. What an agent asks, nobody knows;
    /// the key of a file stays in memory.
    fn may_take_a_person(&self) -> bool {
        let by_agent = |key: &Candidate| matches!(key, Candidate::Usable(Signer::Agent(_)));
        self.candidates.iter().any(by_agent)
    }
}

/// Where an attempt's keys come from, which decides what follows a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The ephemeral key of an earlier login.
    Delegated,
    /// Some of the keys: the one of the login before, the remembered one, or those of named files.
    Some,
    /// All keys that there are.
    All,
}

/// How a handshake judges a host's key.
type Rule = dyn Fn(&HostPublicKey, Shown<'_>) -> Verdict + Send + Sync;

/// Makes one login.
struct Connector<'a> {
    client: &'a Client,
    route: &'a Route,
    spec: Option<OpenSpec>,
    /// The host key that a person has confirmed: this one and no other.
    confirmed: Option<HostPublicKey>,
    /// The host key that was accepted on an earlier connection, and then on this one.
    proved: Option<HostPublicKey>,
    /// When the request may have left this machine.
    sent_at: Option<Instant>,
    /// What is left of the user's limit for all connections together. What is asked of a person
    /// between them takes nothing of it.
    left: Duration,
}

impl<'a> Connector<'a> {
    fn new(client: &'a Client, route: &'a Route, spec: Option<OpenSpec>) -> Self {
        let left = client.options.connect_timeout;
        Self { client, route, spec, confirmed: None, proved: None, sent_at: None, left }
    }

    async fn establish(&mut self) -> Result<Connected, Error> {
        let mut attempt = self.first_attempt().await?;
        let mut refused: Vec<Vec<u8>> = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let (result, pipelined) = self.log_in(&attempt).await?;
            match result {
                Ok(logged_in) => {
                    self.proved = Some(logged_in.host_key.clone());
                    self.learn(&attempt, &logged_in);
                    return Ok((logged_in.driver, pipelined));
                }
                Err(LoginError::HostKeyRejected(host)) => self.confirm_host_key(*host).await?,
                Err(LoginError::Locked { index }) => {
                    let Candidate::Locked(locked) = attempt.candidates.swap_remove(index) else {
                        return Err(Error::TaskFailed);
                    };
                    let key = self.unlock(locked).await?;
                    self.client.keep_unlocked(&key);
                    let key = Candidate::Usable(Signer::File(key));
                    attempt = Attempt::new(vec![key], None, Kind::All);
                }
                Err(LoginError::Refused { key_index, .. }) if attempt.kind != Kind::All => {
                    let blob = attempt.candidates.get(key_index).map(Candidate::public_blob);
                    refused.extend(blob.map(<[u8]>::to_vec));
                    attempt = self.after_refusal(attempt.kind, &refused).await?;
                }
                Err(LoginError::Refused { .. } | LoginError::NoKeyAccepted) => {
                    return Err(self.keys_refused(&attempt, &refused));
                }
                Err(LoginError::NoCandidates) => return Err(self.no_keys()),
                Err(error) => return Err(self.failed(error)),
            }
        }
        Err(self.keys_refused(&attempt, &refused))
    }

    // Keys.

    /// The keys that are worth a first try: as few as will do, so that neither the agent nor a
    /// further round trip is needed where the outcome is known from the last time.
    async fn first_attempt(&self) -> Result<Attempt, Error> {
        if let Some(key) = self.client.delegated(&self.route.destination) {
            let candidates = vec![Candidate::Usable(Signer::Delegated(key))];
            return Ok(Attempt::new(candidates, Some(0), Kind::Delegated));
        }
        if self.client.options.unattended {
            return self.attempt_again().await;
        }
        self.attempt_with_own_keys().await
    }

    /// Whoever comes back does so by the key of the login before, if that was a file's: no file has
    /// to be there any more, and no file server to answer.
    async fn attempt_again(&self) -> Result<Attempt, Error> {
        match self.client.kept(&self.route.destination) {
            Some(key) => {
                let candidates = vec![Candidate::Usable(Signer::File(key))];
                Ok(Attempt::new(candidates, Some(0), Kind::Some))
            }
            None => self.attempt_with_own_keys().await,
        }
    }

    async fn attempt_with_own_keys(&self) -> Result<Attempt, Error> {
        let sources = &self.route.identities;
        let files = sources.load_files()?;
        let remembered = self.route.accepted.recall(&self.route.destination);
        let ready = |key: &Candidate| matches!(key, Candidate::Usable(_));
        let without_agent = self.open(sources.candidates(files, Vec::new()));
        let is_remembered =
            |key: &Candidate| remembered.as_ref() == Some(&fingerprint(key.public_blob()));
        if let Some(index) = without_agent.iter().position(|key| ready(key) && is_remembered(key)) {
            return Ok(Attempt::new(without_agent, Some(index), Kind::Some));
        }
        let only_named = sources.explicit && without_agent.len() == 1;
        if remembered.is_none() && only_named && without_agent.iter().all(ready) {
            let kind = if sources.agent.is_some() { Kind::Some } else { Kind::All };
            return Ok(Attempt::new(without_agent, Some(0), kind));
        }
        let candidates = self.all_candidates(&[]).await?;
        let pipeline = candidates.iter().position(|key| ready(key) && is_remembered(key));
        let kind = if pipeline.is_some() { Kind::Some } else { Kind::All };
        Ok(Attempt::new(candidates, pipeline, kind))
    }

    /// Everything there is, but for the keys that were refused already.
    async fn all_candidates(&self, refused: &[Vec<u8>]) -> Result<Vec<Candidate>, Error> {
        let sources = &self.route.identities;
        let files = sources.load_files()?;
        tell_skipped(self.client, &files);
        let (held, problem) = match sources.agent_keys().await {
            Ok(held) => (held.keys, None),
            Err(problem) => (Vec::new(), Some(problem)),
        };
        let mut candidates = self.open(sources.candidates(files, held));
        candidates.retain(|key| refused.iter().all(|blob| blob != key.public_blob()));
        match problem {
            // The agent may be there again by the next attempt.
            Some(problem)
                if self.client.options.unattended
                    && candidates.is_empty()
                    && refused.is_empty() =>
            {
                Err(SignError::Agent(problem).into())
            }
            // One that does not answer has none: the files may do.
            _ => Ok(candidates),
        }
    }

    /// With those keys unlocked that were before. Where nobody is there, only what signs without a
    /// passphrase or a touch is a key.
    fn open(&self, candidates: Vec<Candidate>) -> Vec<Candidate> {
        let opened = candidates.into_iter().map(|key| match key {
            Candidate::Locked(locked) => match self.client.opened(&locked) {
                Some(key) => Candidate::Usable(Signer::File(key)),
                None => Candidate::Locked(locked),
            },
            usable @ Candidate::Usable(_) => usable,
        });
        let attended = !self.client.options.unattended;
        let signs_alone = |key: &Candidate| match key {
            Candidate::Usable(signer) => !signer.algorithm().starts_with("sk-"),
            Candidate::Locked(_) => false,
        };
        opened.filter(|key| attended || signs_alone(key)).collect()
    }

    async fn after_refusal(&self, kind: Kind, refused: &[Vec<u8>]) -> Result<Attempt, Error> {
        if kind == Kind::Delegated {
            self.client.set_delegated(&self.route.destination, None);
            return match self.client.options.unattended {
                true => self.attempt_again().await,
                false => self.attempt_with_own_keys().await,
            };
        }
        self.route.accepted.remember(&self.route.destination, None);
        let candidates = self.all_candidates(refused).await?;
        if candidates.is_empty() {
            let none = Attempt::new(candidates, None, kind);
            return Err(self.keys_refused(&none, refused));
        }
        Ok(Attempt::new(candidates, None, Kind::All))
    }

    async fn unlock(&self, locked: LockedKey) -> Result<FileKey, Error> {
        let prompt = Arc::clone(&self.client.options.prompt);
        let unlocked = off_the_runtime(move || {
            locked.unlock_with(PASSPHRASE_ATTEMPTS, &mut |key, attempt| {
                let fingerprint = shown_fingerprint(key.public_blob());
                let (path, comment) = (key.path(), key.comment());
                let identity = LockedIdentity { path, fingerprint: &fingerprint, comment };
                prompt.passphrase(&identity, attempt)
            })
        });
        let unlocked: Result<FileKey, UnlockError> = unlocked.await?;
        Ok(unlocked?)
    }

    /// Remembers what makes the next login shorter.
    fn learn(&self, attempt: &Attempt, logged_in: &LoggedIn) {
        let Route { destination, accepted, .. } = self.route;
        if let Some((key, lifetime)) = &logged_in.delegated {
            self.client.set_delegated(destination, Some((key.clone(), *lifetime)));
        }
        let signer = attempt.candidates.get(logged_in.key_index);
        if let Some(Candidate::Usable(Signer::File(key))) = signer {
            self.client.keep(destination, key);
        }
        // A key that is used without asking anyway need not be remembered.
        let certain = attempt.candidates.len() == 1 && attempt.pipeline.is_some();
        if attempt.kind != Kind::Delegated
            && !certain
            && let Some(key) = attempt.candidates.get(logged_in.key_index)
        {
            accepted.remember(destination, Some(&fingerprint(key.public_blob())));
        }
    }

    // The host.

    async fn confirm_host_key(&mut self, host: RejectedHost) -> Result<(), Error> {
        let judgement = self.route.known.judge_shown(&host);
        let RejectedHost { key, .. } = host;
        if self.confirmed.is_some() {
            // It was another one a moment ago.
            let question = self.route.known.question(&key, &[]);
            return Err(Box::new(HostKeyProblem::NotConfirmed(question)).into());
        }
        let question = match judgement {
            Judgement::Refused(problem) => return Err(problem.into()),
            Judgement::FirstSight(question) | Judgement::NewType(question) => question,
            Judgement::Trusted => return Err(Error::TaskFailed),
        };
        match self.ask_host_key(&question).await? {
            Answer::Yes => {
                self.route.known.remember(&key)?;
                self.confirmed = Some(key);
                Ok(())
            }
            Answer::No | Answer::Nobody => {
                Err(Box::new(HostKeyProblem::NotConfirmed(question)).into())
            }
        }
    }

    async fn ask_host_key(&self, question: &HostKeyQuestion) -> Result<Answer, Error> {
        let prompt = Arc::clone(&self.client.options.prompt);
        let question = question.clone();
        off_the_runtime(move || prompt.host_key(&question)).await
    }

    /// A host that was taken at first sight is remembered as soon as it has proved its key, whatever
    /// becomes of the login.
    fn remember_first_sight(&self, proved: Option<&HostPublicKey>) {
        let asked = self.confirmed.is_some() || self.client.options.unattended;
        let Some(key) = proved.filter(|_| !asked) else { return };
        let Judgement::FirstSight(question) = self.route.known.judge(key) else { return };
        let HostKeyQuestion { name, algorithm, fingerprint, file, .. } = question;
        let notice = match self.route.known.remember(key) {
            Ok(()) => Notice::HostAdded(format!(
                "{name} is new, and trusted from now on: {algorithm} {fingerprint} (added to {})",
                file.display()
            )),
            Err(error) => Notice::PassedOver(format!("{name} could not be remembered: {error}")),
        };
        self.client.options.prompt.notice(&notice);
    }

    // One connection.

    async fn reach(&mut self) -> Result<tokio::net::TcpStream, Error> {
        let Route { host, port, .. } = self.route;
        let reached = self.within_limit(connect_tcp(host, *port), Duration::ZERO).await;
        match reached {
            Some(Ok(tcp)) => Ok(tcp),
            // Only the system's calls on sockets have a number; the resolver has texts.
            Some(Err(source)) if source.raw_os_error().is_none() => {
                Err(Error::Resolve { host: host.clone(), source })
            }
            Some(Err(source)) => Err(Error::Connect { host: host.clone(), port: *port, source }),
            None => Err(Error::ConnectTimeout {
                host: host.clone(),
                after: self.client.options.connect_timeout,
                phase: Phase::Connect,
                started: Started::No,
            }),
        }
    }

    /// The work's result, or `None` if it takes longer than what is left of the limit, or than
    /// `at_least`. What it takes is gone from the limit.
    async fn within_limit<T>(
        &mut self,
        work: impl Future<Output = T>,
        at_least: Duration,
    ) -> Option<T> {
        let started = Instant::now();
        let result = tokio::time::timeout(self.left.max(at_least), work).await;
        self.left = self.left.saturating_sub(started.elapsed());
        result.ok()
    }

    /// The rule by which the handshake judges the host's key, which it notes if it accepts it, and
    /// the types of key that it asks for first.
    fn host_key_rule(&self, proved: &Arc<OnceLock<HostPublicKey>>) -> (Vec<KeyKind>, Box<Rule>) {
        let proved = Arc::clone(proved);
        let in_flight = Arc::clone(&self.client.in_flight);
        in_flight.store(false, Ordering::Relaxed);
        let has_request = self.spec.is_some();
        let note = move |key: &HostPublicKey, verdict: Verdict| {
            if verdict == Verdict::Accept {
                // A key is accepted once.
                let _ = proved.set(key.clone());
                in_flight.store(has_request, Ordering::Relaxed);
            }
            verdict
        };
        if let Some(confirmed) = &self.confirmed {
            let expected = confirmed.clone();
            let rule = move |key: &HostPublicKey, _: Shown<'_>| {
                let same = *key == expected;
                note(key, if same { Verdict::Accept } else { Verdict::Reject })
            };
            return (vec![confirmed.kind()], Box::new(rule));
        }
        let (known, accept_new) = (self.route.known.clone(), self.client.options.accept_new);
        let mut preferred = known.preferred();
        // What was accepted once is not a stranger on the next connection, wherever it is written.
        let earlier = self.proved.clone();
        if let Some(key) = &earlier {
            preferred.retain(|kind| *kind != key.kind());
            preferred.insert(0, key.kind());
        }
        let rule = move |key: &HostPublicKey, shown: Shown<'_>| {
            if earlier.as_ref() == Some(key) {
                return note(key, Verdict::Accept);
            }
            note(key, known.decide(key, shown, accept_new))
        };
        (preferred, Box::new(rule))
    }

    async fn log_in(
        &mut self,
        attempt: &Attempt,
    ) -> Result<(Result<LoggedIn, LoginError>, Option<Pipelined>), Error> {
        if attempt.candidates.is_empty() {
            return Err(self.no_keys());
        }
        let tcp = self.reach().await?;
        let clock = Clock::new();
        let config = Config::default();
        let software = config.software.clone();
        let mut connection = Connection::new(Role::Client, config, clock.now());
        let spec = self.spec.clone();
        let pipelined = spec.map(|spec| open(&mut connection, spec)).transpose()?;
        let proved = Arc::new(OnceLock::new());
        let (preferred, rule) = self.host_key_rule(&proved);
        let (tls, side) = tls::connect_by(&preferred, rule)
            .map_err(|error| Error::TlsSetup(error.to_string()))?;
        self.sent_at = pipelined.as_ref().map(|pipelined| pipelined.sent_at);
        let who = Login {
            user: &self.route.user,
            candidates: &attempt.candidates,
            pipeline: attempt.pipeline,
            delegate_for: match self.client.options.delegation {
                _ if attempt.kind == Kind::Delegated => None,
                Delegation::Never => None,
                Delegation::WhereNeeded(lifetime) => {
                    Some(lifetime).filter(|_| attempt.may_take_a_person())
                }
                Delegation::Always(lifetime) => Some(lifetime),
            },
            software: &software,
        };
        let logged_in = Box::pin(login(tcp, tls, side, who, connection, clock));
        let result = self.within_limit(logged_in, time_for_a_person(attempt)).await;
        // What comes after this connection is known, or told, by its result.
        self.client.in_flight.store(false, Ordering::Relaxed);
        self.remember_first_sight(proved.get());
        if let Some(key) = proved.get() {
            self.proved = Some(key.clone());
        }
        // Before the host has proved its key nothing of the command has left this machine.
        let may_have_started = pipelined.is_some() && proved.get().is_some();
        let started = if may_have_started { Started::Unknown } else { Started::No };
        let host = || self.route.host.clone();
        match result {
            Some(Err(LoginError::Io(source))) => {
                Err(Error::LoginLink { host: host(), source, started })
            }
            Some(Err(LoginError::Auth(source))) => {
                // What the server says before it has accepted a key, it says instead of accepting.
                let told = matches!(source, AuthError::PeerClosed(_) | AuthError::PeerIncompatible);
                let started = if told { Started::No } else { started };
                Err(Error::Login { host: host(), source, started })
            }
            Some(result) => Ok((result, pipelined)),
            None => {
                let after = self.client.options.connect_timeout.max(time_for_a_person(attempt));
                let phase = Phase::Authenticate;
                Err(Error::ConnectTimeout { host: host(), after, phase, started })
            }
        }
    }

    /// Goes as far as it takes to see the host's key and certificate, and away.
    async fn look(&mut self) -> Result<RejectedHost, Error> {
        let tcp = self.reach().await?;
        let clock = Clock::new();
        let connection = Connection::new(Role::Client, Config::default(), clock.now());
        let preferred = self.route.known.preferred();
        let rule = |_: &HostPublicKey, shown: Shown<'_>| match shown {
            Shown::Key => Verdict::Undecided,
            Shown::Certificate(_) => Verdict::Reject,
        };
        let (tls, side) = tls::connect_by(&preferred, rule)
            .map_err(|error| Error::TlsSetup(error.to_string()))?;
        let nobody = Login {
            user: &self.route.user,
            candidates: &[],
            pipeline: None,
            delegate_for: None,
            software: "afar",
        };
        let seen = Box::pin(login(tcp, tls, side, nobody, connection, clock));
        match self.within_limit(seen, Duration::ZERO).await {
            Some(Err(LoginError::HostKeyRejected(host))) => Ok(*host),
            Some(Err(error)) => Err(self.failed(error)),
            // Nobody is logged in whose key was rejected.
            Some(Ok(_)) => Err(Error::TaskFailed),
            None => Err(Error::ConnectTimeout {
                host: self.route.host.clone(),
                after: self.client.options.connect_timeout,
                phase: Phase::Authenticate,
                started: Started::No,
            }),
        }
    }

    // Errors.

    fn no_keys(&self) -> Error {
        let host = self.route.host.clone();
        if self.client.options.unattended {
            return Error::NeedsPerson { host };
        }
        Error::NoKeys { host }
    }

    fn keys_refused(&self, attempt: &Attempt, refused: &[Vec<u8>]) -> Error {
        let tried = attempt.candidates.iter().map(Candidate::public_blob);
        let mut keys: Vec<String> =
            refused.iter().map(Vec::as_slice).chain(tried).map(shown_fingerprint).collect();
        keys.dedup();
        Error::KeysRefused {
            host: self.route.host.clone(),
            user: self.route.user.clone(),
            keys: keys.join(", "),
        }
    }

    fn failed(&self, error: LoginError) -> Error {
        let Route { host, port, .. } = self.route;
        let (host, port) = (host.clone(), *port);
        match error {
            LoginError::Tls(problem) => Error::Tls { host, port, problem },
            LoginError::Sign(error) => Error::Sign(error),
            LoginError::Io(source) => Error::LoginLink { host, source, started: Started::No },
            LoginError::Auth(source) => Error::Login { host, source, started: Started::No },
            _ => Error::TaskFailed,
        }
    }
}

/// What a login may take whatever the user's limit: an agent may be asking a person.
fn time_for_a_person(attempt: &Attempt) -> Duration {
    let by_agent = |key: &Candidate| matches!(key, Candidate::Usable(Signer::Agent(_)));
    if attempt.candidates.iter().any(by_agent) { AUTH_DEADLINE } else { Duration::ZERO }
}

#[cfg(test)]
mod tests;
