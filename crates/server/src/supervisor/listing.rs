//! The list of jobs, page by page: those at hand, and those of the archive, the newest first.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use afar_core::job::JobKey;
use afar_proto::message::{JobInfo, JobPage, JobState, ListQuery};
use tokio::sync::oneshot;

use super::job::ToJob;
use super::jobs::{Entry, Jobs, Life, View};
use crate::limits::{LIST_PAGE_MAX, LIST_STEP_JOBS};

/// A job that may come onto the page.
struct Candidate {
    number: u64,
    source: Source,
}

enum Source {
    AtHand(JobKey, Life),
    Archived(Box<JobInfo>),
}

impl Jobs {
    /// As many of the jobs behind the number `after` as fit on a page.
    pub(super) async fn page(&self, view: &View, list: &ListQuery, after: Option<u64>) -> JobPage {
        let limit = list.limit.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.unwrap_or(LIST_PAGE_MAX).clamp(1, LIST_PAGE_MAX);
        let mut page = Page { page: JobPage::default(), bytes: 0, last: None, limit };
        let mut at_hand = self.seen(view, after);
        // A job that has ended may have a task still: then it knows better.
        let known: BTreeSet<JobKey> = at_hand.iter().map(|(key, _)| key.clone()).collect();
        at_hand.reverse();
        let mut before = after.unwrap_or(u64::MAX);
        loop {
            let archived = self.archived_before(view, list, before).await;
            let is_last = archived.len() < usize::try_from(LIST_STEP_JOBS).unwrap_or(usize::MAX);
            let floor = archived.last().filter(|_| !is_last).map_or(0, |(_, number, _)| *number);
            let mut candidates: Vec<Candidate> = archived
                .into_iter()
                .filter(|(key, ..)| !known.contains(key))
                .map(|(_, number, info)| Candidate {
                    number,
                    source: Source::Archived(Box::new(info)),
                })
                .collect();
            while let Some((key, Entry { number, life })) =
                at_hand.pop_if(|(_, entry)| entry.number >= floor)
            {
                candidates.push(Candidate { number, source: Source::AtHand(key, life) });
            }
            candidates.sort_unstable_by_key(|candidate| Reverse(candidate.number));
            for Candidate { number, source } in candidates {
                let Some(info) = source.info(self).await.filter(|info| is_wanted(list, info))
                else {
                    continue;
                };
                if let Some(full) = page.push(number, info) {
                    return full;
                }
            }
            if is_last {
                return page.page;
            }
            before = floor;
        }
    }

    async fn archived_before(
        &self,
        view: &View,
        list: &ListQuery,
        before: u64,
    ) -> Vec<(JobKey, u64, JobInfo)> {
        let wanted = list.states.as_ref().is_none_or(|states| states.contains(&JobState::Ended));
        let scope = (!view.all).then_some(view.scope.as_str());
        let prefix = list.job.as_ref().map_or("", |job| job.as_str());
        let asked = self
            .archive()
            .filter(|_| wanted)
            .map(|mut archive| archive.page(scope, prefix, before, LIST_STEP_JOBS));
        let Some(asked) = asked else { return Vec::new() };
        let ended = asked.await.into_iter();
        ended.map(|ended| (ended.key, ended.number, ended.told.info)).collect()
    }
}

impl Source {
    async fn info(self, jobs: &Jobs) -> Option<JobInfo> {
        match self {
            Self::Archived(info) => Some(*info),
            Self::AtHand(key, Life::Live(commands)) => {
                let (reply, described) = oneshot::channel();
                let _ = commands.send(ToJob::Describe(reply));
                match described.await {
                    Ok(info) => Some(info),
                    // It has ended in this moment, and others tell of it now.
                    Err(_) => jobs.info_of_ended(&key).await,
                }
            }
            Self::AtHand(_, Life::Ended(remains)) => Some(remains.info.clone()),
            Self::AtHand(_, Life::Removed(_) | Life::Refused(_) | Life::Lost(_)) => None,
        }
    }
}

fn is_wanted(list: &ListQuery, info: &JobInfo) -> bool {
    let begins = |begin: &str| info.job.as_str().starts_with(begin);
    list.job.as_ref().is_none_or(|job| begins(job.as_str()))
        && list.states.as_ref().is_none_or(|states| states.contains(&info.state))
}

/// A page that is being filled.
struct Page {
    page: JobPage,
    bytes: usize,
    /// The number of the last job on it.
    last: Option<u64>,
    limit: usize,
}

impl Page {
    /// Adds a job; gives the page if it is full without it.
    fn push(&mut self, number: u64, info: JobInfo) -> Option<JobPage> {
        if self.page.jobs.len() >= self.limit || self.page.push(&mut self.bytes, info).is_err() {
            self.page.next = self.last.map(|number| number.to_string());
            return Some(std::mem::take(&mut self.page));
        }
        self.last = Some(number);
        None
    }
}
