//! The jobs of a session that have not finished, and the questions that have no answer yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use afar_proto::connection::OpenError;
use afar_proto::error::ConnectionError;
use afar_proto::message::{Answer, Incarnation, Query, Refused, SessionName};
use afar_proto::outcome::{RefusalReason, Started};
use afar_proto::{ChannelId, Connection};

use super::job_state::JobState;
use crate::error::Error;
use crate::job::{Finished, JobEvent};
use crate::session::{JobKey, Reply};

/// A question.
pub(super) struct Question {
    pub(super) query: Query,
    /// Who waits for its answer; nobody where it is a wish of ours.
    pub(super) reply: Option<Reply>,
    /// Whether it was asked on an earlier connection, and may have done then what it asks for.
    again: bool,
}

impl Question {
    pub(super) fn new(query: Query, reply: Option<Reply>) -> Self {
        Self { query, reply, again: false }
    }

    pub(super) fn answer(self, answer: Result<Box<Answer>, Error>) {
        if let Some(reply) = self.reply {
            // Whoever asked may have stopped waiting.
            let _ = reply.send(answer);
        }
    }

    /// Whether asking it twice may do something twice (`J-2.6`).
    fn counts_each_time(&self) -> bool {
        matches!(&self.query, Query::Kill(kill) if kill.signal.is_some())
    }

    /// What was asked for, if that the job is not there (any more) means that the first time has
    /// done it.
    fn was_done_before(&self, refused: &Refused) -> Option<Answer> {
        let gone = self.again && refused.reason == RefusalReason::NoSuchJob;
        let job = match &self.query {
            Query::Kill(kill) if refused.started == Started::Yes => &kill.job,
            Query::Remove(remove) => &remove.job,
            _ => return None,
        };
        gone.then(|| Answer::Done { job: job.clone() })
    }
}

/// The jobs that have not finished.
pub(super) struct Jobs {
    pub(super) target: Arc<str>,
    /// Each with its channel, if it has one on the present connection.
    states: BTreeMap<JobKey, (Option<ChannelId>, JobState)>,
    keys: BTreeMap<ChannelId, JobKey>,
    /// Questions on the present connection.
    queries: BTreeMap<ChannelId, Question>,
    /// Questions for the next one.
    waiting_queries: Vec<Question>,
    /// Whether a supervisor has ever said anything: before that no request can have reached one
    /// that lives.
    pub(super) ready: bool,
    /// Whether the present one has said that it has sessions.
    pub(super) has_sessions: bool,
    /// Whether it has said that it has terminals.
    pub(super) has_terminals: bool,
    /// The life of the supervisor at the other end of the present connection, if it said so.
    pub(super) incarnation: Option<Incarnation>,
    /// Sessions of the connection's own that were used on the present connection.
    own_sessions: BTreeSet<SessionName>,
    /// Those that ended with an earlier one, which nobody was told yet.
    lost_sessions: BTreeSet<SessionName>,
}

impl Jobs {
    pub(super) fn new(target: Arc<str>) -> Self {
        Self {
            target,
            states: BTreeMap::new(),
            keys: BTreeMap::new(),
            queries: BTreeMap::new(),
            waiting_queries: Vec::new(),
            ready: false,
            has_sessions: false,
            has_terminals: false,
            incarnation: None,
            own_sessions: BTreeSet::new(),
            lost_sessions: BTreeSet::new(),
        }
    }

    pub(super) fn insert(&mut self, key: JobKey, channel: Option<ChannelId>, state: JobState) {
        if let Some(channel) = channel {
            self.keys.insert(channel, key);
        }
        self.states.insert(key, (channel, state));
    }

    pub(super) fn remove(&mut self, key: JobKey) -> Option<(Option<ChannelId>, JobState)> {
        let (channel, state) = self.states.remove(&key)?;
        if let Some(channel) = channel {
            self.keys.remove(&channel);
        }
        Some((channel, state))
    }

    /// A job to be asked for again, and the incarnation at the other end.
    pub(super) fn take(&mut self, key: JobKey) -> Option<(JobState, Option<&Incarnation>)> {
        let (_, state) = self.states.remove(&key)?;
        Some((state, self.incarnation.as_ref()))
    }

    pub(super) fn state(&mut self, key: JobKey) -> Option<(Option<ChannelId>, &mut JobState)> {
        let (channel, state) = self.states.get_mut(&key)?;
        Some((*channel, state))
    }

    pub(super) fn key(&self, channel: ChannelId) -> Option<JobKey> {
        self.keys.get(&channel).copied()
    }

    pub(super) fn without_channel(&self) -> Vec<JobKey> {
        let waiting = self.states.iter().filter(|(_, (channel, _))| channel.is_none());
        waiting.map(|(key, _)| *key).collect()
    }

    /// Whether anybody waits for something from the server.
    pub(super) fn want_a_link(&self) -> bool {
        !self.states.is_empty() || !self.waiting_queries.is_empty()
    }

    pub(super) fn is_in_session(&self, channel: ChannelId) -> bool {
        let state = self.keys.get(&channel).and_then(|key| self.states.get(key));
        state.is_some_and(|(_, state)| state.is_in_session())
    }

    pub(super) fn has_terminal(&self, channel: ChannelId) -> bool {
        let state = self.keys.get(&channel).and_then(|key| self.states.get(key));
        state.is_some_and(|(_, state)| state.has_terminal())
    }

    /// A job was started. If that was in a session of the connection's own, and the one of that name
    /// had ended with an earlier connection, this is a fresh one, and the job says so.
    pub(super) fn note_session(&mut self, channel: ChannelId) {
        let Some(key) = self.keys.get(&channel) else { return };
        let Some((_, state)) = self.states.get_mut(key) else { return };
        let Some(name) = state.own_session().cloned() else { return };
        if self.lost_sessions.remove(&name) {
            state.meets_a_fresh_session();
        }
        self.own_sessions.insert(name);
    }

    // What the server says.

    /// The server has been heard of on this connection; `again` if it is not the first one.
    pub(super) fn handle_ready(&mut self, incarnation: Option<Incarnation>, again: bool) {
        self.ready = true;
        for (_, state) in self.states.values_mut() {
            state.ready(incarnation.as_ref(), again);
        }
        self.incarnation = incarnation;
    }

    pub(super) fn tell(&self, channel: ChannelId, event: JobEvent) {
        if let Some((_, state)) = self.keys.get(&channel).and_then(|key| self.states.get(key)) {
            state.tell(event);
        }
    }

    pub(super) fn finish(
        &mut self,
        channel: ChannelId,
        end: impl FnOnce(&JobState, &str) -> Finished,
    ) {
        let Some(key) = self.key(channel) else { return };
        if let Some((_, state)) = self.remove(key) {
            let finished = end(&state, &self.target);
            state.finish(finished);
        }
    }

    /// The job's handle has seen what it wanted to see.
    pub(super) fn leave(&mut self, channel: ChannelId) {
        let Some(key) = self.key(channel) else { return };
        if let Some((_, state)) = self.remove(key) {
            state.leave(&self.target);
        }
    }

    pub(super) fn handle_refused(&mut self, channel: ChannelId, refused: Refused) {
        match self.queries.remove(&channel) {
            Some(question) => {
                let done = question.was_done_before(&refused);
                let refused = || Error::Refused(Box::new(refused));
                question.answer(done.map(Box::new).ok_or_else(refused));
            }
            None => self.finish(channel, |state, target| state.refused(target, refused)),
        }
    }

    pub(super) fn handle_failed(&mut self, channel: ChannelId, message: String) {
        match self.queries.remove(&channel) {
            Some(question) => question.answer(Err(Error::QueryFailed { message })),
            None => self.finish(channel, |state, target| state.broken(target, message)),
        }
    }

    pub(super) fn handle_answer(&mut self, channel: ChannelId, answer: Box<Answer>) {
        match self.queries.remove(&channel) {
            Some(question) => question.answer(Ok(answer)),
            // An attachment that does not follow has come to where it was to end.
            None => self.leave(channel),
        }
    }

    // Questions.

    /// Asks it on this connection; on the next one, if this one has ended and has not said so yet.
    pub(super) fn put(&mut self, connection: &mut Connection, question: Question) {
        match connection.query(&question.query) {
            Ok(channel) => {
                self.queries.insert(channel, question);
            }
            Err(OpenError::Closed) => self.keep_query(question),
            Err(error) => question.answer(Err(Error::Open(error))),
        }
    }

    pub(super) fn keep_query(&mut self, question: Question) {
        self.waiting_queries.push(question);
    }

    pub(super) fn take_queries(&mut self) -> Vec<Question> {
        std::mem::take(&mut self.waiting_queries)
    }

    // The link.

    /// Takes over from a connection that has ended what each job has received on it. Whoever asked
    /// a question asks it again, unless that might do something twice: `cause` is told then.
    pub(super) fn lose_channels(&mut self, connection: &mut Connection, cause: &ConnectionError) {
        self.keys.clear();
        self.incarnation = None;
        self.lost_sessions.append(&mut self.own_sessions);
        for (channel, state) in self.states.values_mut() {
            if let Some(channel) = channel.take() {
                state.lose_channel(connection.resumption(channel));
            }
        }
        for mut question in std::mem::take(&mut self.queries).into_values() {
            if question.reply.as_ref().is_some_and(Reply::is_closed) {
                continue;
            }
            if question.counts_each_time() {
                question.answer(Err(Error::SignalUncertain { cause: cause.clone() }));
                continue;
            }
            question.again = true;
            self.waiting_queries.push(question);
        }
    }

    pub(super) fn tell_all_lost(&mut self, cause: &str) {
        for (_, state) in self.states.values_mut() {
            state.disconnected(cause);
        }
    }

    /// The link is lost for good; `gave_up` says why it was not made again, if that was tried.
    pub(super) fn fail_all(&mut self, error: &ConnectionError, gave_up: Option<&str>) {
        self.keys.clear();
        for (_, (_, state)) in std::mem::take(&mut self.states) {
            let finished = match error {
                // The listener's own word, in place of the supervisor's first one.
                ConnectionError::PeerClosed(goodbye) if !self.ready => {
                    state.unavailable(&self.target, &goodbye.message)
                }
                error => state.lost(&self.target, error, gave_up),
            };
            state.finish(finished);
        }
        let asked = std::mem::take(&mut self.queries).into_values();
        for question in asked.chain(std::mem::take(&mut self.waiting_queries)) {
            let error = match error {
                ConnectionError::PeerClosed(goodbye) if !self.ready => {
                    Error::Unavailable { message: goodbye.message.clone() }
                }
                error => Error::QueryLost {
                    cause: error.clone(),
                    gave_up: gave_up.map(ToOwned::to_owned),
                },
            };
            question.answer(Err(error));
        }
    }
}
