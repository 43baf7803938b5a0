//! A simulation of everything that jobs have to outlive: the connections of both sides, the register,
//! the machine and the journal as they are, over links that are cut at any byte, under a supervisor
//! that is killed at every step of J-1.4, in time that is only simulated. What came of it is held
//! against a history of what was true.
//!
//! Each run is all of its seed. `AFAR_SIM_SEED=N` runs one seed and prints what happened;
//! `AFAR_SIM_RUNS=N` runs so many instead of the usual ones, and `cargo xtask simulate` does that in
//! a release build.

#[cfg(test)]
mod checker;
#[cfg(test)]
mod client;
#[cfg(test)]
mod history;
#[cfg(test)]
mod host;
#[cfg(test)]
mod live;
#[cfg(test)]
mod network;
#[cfg(test)]
mod process;
#[cfg(test)]
mod rng;
#[cfg(test)]
mod runs;
#[cfg(test)]
mod supervisor;
#[cfg(test)]
mod world;

/// Invariants that are broken on purpose, to see that it is noticed.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// An OPEN that is sent again starts the job again.
    StartsTwice,
    /// The intent is not written before the process is started.
    SkipsIntent,
    /// Ids that a damaged journal has forgotten are started again.
    VouchesForAll,
    /// A byte is missing now and then.
    DropsBytes,
    /// The client wants a byte again that it has.
    AsksTwice,
    /// Output is let go of before it was acknowledged.
    ReleasesEarly,
    /// stdin goes on where the process is, not where the supervisor is.
    ForgetsStdin,
    /// Every exit was a success.
    MakesUpStatus,
    /// The last word never comes.
    NeverSeals,
    /// The last word is told before it is written down.
    SealsBeforeWriting,
    /// An upgrade loses the jobs.
    ForgetsAtUpgrade,
}
