//! Which ids are taken, and what a request for one means (`J-1.1` to `J-1.7`).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use afar_proto::Instant;
use afar_proto::message::JobId;
use serde::{Deserialize, Serialize};

use super::limits::RETRY_MARGIN;

/// What tells one job from all others of a user (`J-1.1`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobKey {
    /// Empty for the user; the fingerprint of a key that is confined to jobs of its own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
    /// The id.
    pub job: JobId,
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scope.is_empty() {
            write!(f, "{}", self.job)
        } else {
            write!(f, "{} of {}", self.job, self.scope)
        }
    }
}

/// The digest of a request, by which a repetition is told from another request (`J-1.2`).
pub type Digest = [u8; 32];

/// What a request says about having been sent before (`J-1.6`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How long ago it was sent first.
    pub age: Duration,
    /// Whether the incarnation that its sender had seen is this one.
    pub same_incarnation: bool,
}

/// What is to be done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The id is new: start the job.
    Start,
    /// It is this job: attach to it.
    Same,
    /// The id is another request's.
    Conflict,
    /// It may have been started and forgotten: nobody can tell.
    Unknown,
}

/// The ids that are known in memory, with what `T` says of each.
///
/// Bounded: beyond its capacity it forgets those first that ended first, and remembers that it can
/// speak for nothing that was sent before. Jobs that have not ended are never forgotten.
#[derive(Debug)]
pub struct Register<T> {
    jobs: BTreeMap<JobKey, Entry<T>>,
    /// Those that have ended, in this order.
    ended: VecDeque<JobKey>,
    ended_max: usize,
    vouch: Vouch,
}

/// Since when every request is remembered. Times are since boot: they count while the machine
/// sleeps, and mean nothing in another boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vouch {
    /// When this incarnation began.
    pub began: Instant,
    /// Since when every request is remembered; before `began` if a journal was kept.
    pub since: Instant,
}

#[derive(Debug)]
struct Entry<T> {
    digest: Digest,
    at: Instant,
    ended: bool,
    value: T,
}

impl<T> Register<T> {
    /// A register that remembers so many ended jobs.
    #[must_use]
    pub fn new(vouch: Vouch, ended_max: usize) -> Self {
        Self { jobs: BTreeMap::new(), ended: VecDeque::new(), ended_max, vouch }
    }

    /// What a request for `key` means at `now`.
    #[must_use]
    pub fn decide(
        &self,
        key: &JobKey,
        digest: &Digest,
        retry: Option<&Retry>,
        now: Instant,
    ) -> Decision {
        match self.jobs.get(key) {
            Some(entry) if entry.digest == *digest => Decision::Same,
            Some(_) => Decision::Conflict,
            None => self.vouch.decide(retry, now),
        }
    }

    /// Takes an id. Whoever had it before is replaced.
    pub fn enter(&mut self, key: JobKey, digest: Digest, now: Instant, value: T) {
        self.jobs.insert(key, Entry { digest, at: now, ended: false, value });
    }

    /// The job has ended: from now on it can be forgotten, if there are too many.
    pub fn end(&mut self, key: &JobKey, value: T) {
        let Some(entry) = self.jobs.get_mut(key) else { return };
        entry.value = value;
        if !entry.ended {
            entry.ended = true;
            self.ended.push_back(key.clone());
        }
        while self.ended.len() > self.ended_max {
            let Some(oldest) = self.ended.pop_front() else { return };
            if let Some(entry) = self.jobs.remove(&oldest) {
                self.vouch.since = self.vouch.since.max(entry.at);
            }
        }
    }

    /// Forgets a job, of which somebody else knows from now on.
    pub fn remove(&mut self, key: &JobKey) {
        self.jobs.remove(key);
        self.ended.retain(|ended| ended != key);
    }

    /// The request that this id was taken by.
    #[must_use]
    pub fn digest(&self, key: &JobKey) -> Option<&Digest> {
        self.jobs.get(key).map(|entry| &entry.digest)
    }

    /// The job that has this id.
    #[must_use]
    pub fn find(&self, key: &JobKey) -> Option<&T> {
        self.jobs.get(key).map(|entry| &entry.value)
    }

    /// The job of this id, to change what is said of it.
    pub fn find_mut(&mut self, key: &JobKey) -> Option<&mut T> {
        self.jobs.get_mut(key).map(|entry| &mut entry.value)
    }

    /// Jobs of a scope whose ids begin so, in the order of their ids.
    pub fn with_prefix<'a>(
        &'a self,
        scope: &'a str,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a JobKey, &'a T)> {
        self.of_scope(scope).filter(move |(key, _)| key.job.as_str().starts_with(prefix))
    }

    /// Jobs of a scope, in the order of their ids.
    pub fn of_scope<'a>(&'a self, scope: &'a str) -> impl Iterator<Item = (&'a JobKey, &'a T)> {
        self.iter().filter(move |(key, _)| key.scope == scope)
    }

    /// All jobs.
    pub fn iter(&self) -> impl Iterator<Item = (&JobKey, &T)> {
        self.jobs.iter().map(|(key, entry)| (key, &entry.value))
    }

    /// What is known of every job: its key, its request, when that came, and what is said of it.
    pub fn entries(&self) -> impl Iterator<Item = (&JobKey, &Digest, Instant, &T)> {
        self.jobs.iter().map(|(key, entry)| (key, &entry.digest, entry.at, &entry.value))
    }

    /// Since when it remembers.
    #[must_use]
    pub fn vouch(&self) -> Vouch {
        self.vouch
    }

    /// Jobs that have not ended.
    #[must_use]
    pub fn running(&self) -> usize {
        self.jobs.len().saturating_sub(self.ended.len())
    }
}

impl Vouch {
    /// What a request at `now` for an id that nobody knows means (`J-1.6`).
    #[must_use]
    pub fn decide(&self, retry: Option<&Retry>, now: Instant) -> Decision {
        let Some(retry) = retry else { return Decision::Start };
        // This incarnation was there already when the request was sent, and has forgotten nothing.
        if retry.same_incarnation && self.since <= self.began {
            return Decision::Start;
        }
        let age = retry.age.saturating_add(RETRY_MARGIN);
        let age_us = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        match now.as_micros().checked_sub(age_us) {
            Some(sent_us) if Instant::from_micros(sent_us) >= self.since => Decision::Start,
            _ => Decision::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Digest = [1; 32];
    const OTHER: Digest = [2; 32];

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn key(scope: &str, job: &str) -> JobKey {
        JobKey { scope: scope.to_owned(), job: JobId::new(job).unwrap() }
    }

    fn retry(age_s: u64, same_incarnation: bool) -> Retry {
        Retry { age: Duration::from_secs(age_s), same_incarnation }
    }

    fn register(ended_max: usize) -> Register<u32> {
        Register::new(Vouch { began: at(100), since: at(100) }, ended_max)
    }

    #[test]
    fn the_same_request_is_the_same_job_and_another_one_is_a_conflict() {
        // J-1.1, J-1.2
        let mut register = register(8);
        let decide = |register: &Register<u32>, key: &JobKey, digest| {
            register.decide(key, digest, None, at(200))
        };
        assert_eq!(decide(&register, &key("", "a"), &ONE), Decision::Start);
        register.enter(key("", "a"), ONE, at(150), 1);
        assert_eq!(decide(&register, &key("", "a"), &ONE), Decision::Same);
        assert_eq!(decide(&register, &key("", "a"), &OTHER), Decision::Conflict);
        // Another scope is another job.
        assert_eq!(decide(&register, &key("SHA256:x", "a"), &OTHER), Decision::Start);
        // And so it stays when it has ended.
        register.end(&key("", "a"), 2);
        assert_eq!(decide(&register, &key("", "a"), &ONE), Decision::Same);
        assert_eq!(decide(&register, &key("", "a"), &OTHER), Decision::Conflict);
        assert_eq!((register.find(&key("", "a")), register.running()), (Some(&2), 0));
    }

    #[test]
    fn an_unknown_id_is_started_again_only_if_it_would_be_remembered() {
        // J-1.6, with its margin of 5 s on both sides.
        let register = register(8);
        let decide = |retry: Option<Retry>, now| {
            register.decide(&key("", "a"), &ONE, retry.as_ref(), at(now))
        };
        assert_eq!(decide(None, 100), Decision::Start);
        assert_eq!(decide(Some(retry(0, false)), 105), Decision::Start);
        assert_eq!(decide(Some(retry(0, false)), 104), Decision::Unknown);
        assert_eq!(decide(Some(retry(60, false)), 165), Decision::Start);
        assert_eq!(decide(Some(retry(61, false)), 165), Decision::Unknown);
        assert_eq!(decide(Some(retry(u64::MAX, false)), 165), Decision::Unknown);
        // Who had seen this incarnation before it asked needs no margin.
        assert_eq!(decide(Some(retry(61, true)), 165), Decision::Start);
    }

    #[test]
    fn a_journal_that_was_kept_vouches_for_the_time_before_this_incarnation() {
        let vouch = Vouch { began: at(100), since: at(10) };
        assert_eq!(vouch.decide(Some(&retry(50, false)), at(101)), Decision::Start);
        assert_eq!(vouch.decide(Some(&retry(90, false)), at(101)), Decision::Unknown);
    }

    #[test]
    fn who_forgets_says_so() {
        let mut register = register(2);
        for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
            register.enter(key("", name), ONE, at(200 + index as u64), 0);
        }
        // The first to end is the first to be forgotten, a running one never.
        for name in ["b", "a"] {
            register.end(&key("", name), 0);
        }
        assert_eq!((register.iter().count(), register.running()), (3, 1));
        register.end(&key("", "c"), 0);
        assert_eq!(register.find(&key("", "b")), None);
        let decide = |age_s, same, now| {
            register.decide(&key("", "b"), &ONE, Some(&retry(age_s, same)), at(now))
        };
        assert_eq!(decide(1, false, 207), Decision::Start);
        assert_eq!(decide(2, false, 207), Decision::Unknown);
        // What this incarnation has forgotten, it can't vouch for either.
        assert_eq!(decide(2, true, 207), Decision::Unknown);
    }

    #[test]
    fn jobs_are_found_by_the_beginnings_of_their_ids_in_their_scope_only() {
        let mut register = register(8);
        for (scope, job) in [("", "ab"), ("", "abc"), ("", "b"), ("SHA256:x", "abd")] {
            register.enter(key(scope, job), ONE, at(200), 0);
        }
        let found = |prefix| -> Vec<String> {
            register.with_prefix("", prefix).map(|(key, _)| key.job.to_string()).collect()
        };
        assert_eq!(found("ab"), ["ab", "abc"]);
        assert_eq!(found("x"), [""; 0]);
        assert_eq!(register.of_scope("SHA256:x").count(), 1);
    }
}
