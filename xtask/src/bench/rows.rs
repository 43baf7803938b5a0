//! What is measured, of whom, and what afar must reach.

/// Who is measured: a column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Contender {
    /// The same without any network: nothing can be faster.
    Local,
    /// rustls with nothing around it.
    BareTls,
    Afar,
    /// OpenSSH as it comes.
    Ssh,
    /// OpenSSH with its fastest exchange and cipher.
    SshFast,
    /// OpenSSH over a connection that is already there (ControlMaster).
    SshWarm,
    Dbclient,
    /// A small blocking server in Python, of the classic protocol.
    Script,
}

impl Contender {
    /// The columns, in order.
    pub(super) const ALL: [Self; 8] = [
        Self::Local,
        Self::BareTls,
        Self::Afar,
        Self::Ssh,
        Self::SshFast,
        Self::SshWarm,
        Self::Dbclient,
        Self::Script,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::BareTls => "bare TLS",
            Self::Afar => "afar",
            Self::Ssh => "ssh",
            Self::SshFast => "ssh curve25519, aes128-gcm",
            Self::SshWarm => "ssh ControlMaster",
            Self::Dbclient => "dbclient",
            Self::Script => "Python script",
        }
    }
}

/// One measurement that is made of several contenders in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    Cold,
    Xargs,
    Sequential,
    InFlight,
    Sessions,
    Classic,
    BulkDown,
    BulkUp,
    Lines,
}

impl Row {
    pub(super) const ALL: [Self; 9] = [
        Self::Cold,
        Self::Xargs,
        Self::Sequential,
        Self::InFlight,
        Self::Sessions,
        Self::Classic,
        Self::BulkDown,
        Self::BulkUp,
        Self::Lines,
    ];

    /// The word for `--only`.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Xargs => "xargs",
            Self::Sequential => "sequential",
            Self::InFlight => "in-flight",
            Self::Sessions => "sessions",
            Self::Classic => "classic",
            Self::BulkDown => "bulk-down",
            Self::BulkUp => "bulk-up",
            Self::Lines => "lines",
        }
    }

    /// Who takes part. A warm ssh moves bulk as a cold one does; only the start differs.
    pub(super) fn contenders(self) -> &'static [Contender] {
        use Contender::{Afar, BareTls, Dbclient, Local, Script, Ssh, SshFast, SshWarm};
        match self {
            Self::Cold | Self::Xargs => &[Local, Afar, Ssh, SshFast, SshWarm, Dbclient],
            Self::Sequential | Self::InFlight | Self::Sessions => &[Local, Afar, SshWarm],
            Self::Classic => &[Local, Afar, Script],
            Self::BulkDown => &[Local, BareTls, Afar, Ssh, SshFast, Dbclient],
            Self::BulkUp => &[Local, BareTls, Afar, Ssh, SshFast, Dbclient],
            Self::Lines => &[Local, Afar, Ssh, SshFast, Dbclient],
        }
    }
}

/// A number that a row yields: a line of the table. A bulk row yields several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Metric {
    Cold,
    Xargs,
    Sequential,
    InFlight,
    Sessions,
    Classic,
    BulkDown,
    BulkDownCpu,
    BulkDownClientCpu,
    BulkDownServerCpu,
    BulkUp,
    BulkUpCpu,
    BulkUpClientCpu,
    BulkUpServerCpu,
    Lines,
}

/// What a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Milliseconds,
    PerSecond,
    /// 10⁶ bytes.
    MegabytesPerSecond,
    /// Processor seconds for 10⁹ bytes.
    CpuSecondsPerGigabyte,
}

impl Unit {
    pub(super) fn less_is_better(self) -> bool {
        matches!(self, Self::Milliseconds | Self::CpuSecondsPerGigabyte)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::PerSecond => "/s",
            Self::MegabytesPerSecond => "MB/s",
            Self::CpuSecondsPerGigabyte => "CPU s/GB",
        }
    }
}

/// What afar must reach in a metric, in the same run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// This many times better than the other; below 1 is a share of a floor.
    Times(f64, Contender),
}

impl Metric {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Cold => "cold one-shot `true`, whole client process",
            Self::Xargs => "one-shots, `xargs -P 8`",
            Self::Sequential => "commands on one connection, in sequence",
            Self::InFlight => "commands on one connection, 32 in flight",
            Self::Sessions => "commands in one session, in sequence (others: each its own process)",
            Self::Classic => "commands on one connection of the classic protocol",
            Self::BulkDown => "bulk down",
            Self::BulkDownCpu => "bulk down, both ends",
            Self::BulkDownClientCpu => "bulk down, client",
            Self::BulkDownServerCpu => "bulk down, server",
            Self::BulkUp => "bulk up",
            Self::BulkUpCpu => "bulk up, both ends",
            Self::BulkUpClientCpu => "bulk up, client",
            Self::BulkUpServerCpu => "bulk up, server",
            Self::Lines => "`seq 1 20000000`",
        }
    }

    /// The name in `--record`.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Xargs => "xargs",
            Self::Sequential => "sequential",
            Self::InFlight => "in_flight",
            Self::Sessions => "sessions",
            Self::Classic => "classic",
            Self::BulkDown => "bulk_down",
            Self::BulkDownCpu => "bulk_down_cpu",
            Self::BulkDownClientCpu => "bulk_down_client_cpu",
            Self::BulkDownServerCpu => "bulk_down_server_cpu",
            Self::BulkUp => "bulk_up",
            Self::BulkUpCpu => "bulk_up_cpu",
            Self::BulkUpClientCpu => "bulk_up_client_cpu",
            Self::BulkUpServerCpu => "bulk_up_server_cpu",
            Self::Lines => "lines",
        }
    }

    pub(super) fn unit(self) -> Unit {
        match self {
            Self::Cold => Unit::Milliseconds,
            Self::Xargs | Self::Sequential | Self::InFlight | Self::Sessions | Self::Classic => {
                Unit::PerSecond
            }
            Self::BulkDown | Self::BulkUp | Self::Lines => Unit::MegabytesPerSecond,
            Self::BulkDownCpu
            | Self::BulkDownClientCpu
            | Self::BulkDownServerCpu
            | Self::BulkUpCpu
            | Self::BulkUpClientCpu
            | Self::BulkUpServerCpu => Unit::CpuSecondsPerGigabyte,
        }
    }

    /// The targets while the listener relays to the supervisor; the hand-off's are higher.
    pub(super) fn goals(self) -> &'static [Goal] {
        use Contender::{Dbclient, Local, Ssh, SshFast, SshWarm};
        use Goal::{AtLeast, AtMost, Times};
        match self {
            Self::Cold => &[AtMost(4.0), Times(1.0, SshWarm), Times(5.0, Dbclient)],
            Self::Xargs => &[AtLeast(400.0)],
            Self::Sequential => &[Times(0.75, Local)],
            Self::InFlight => &[Times(0.60, Local)],
            // A shell that is there need not be started.
            Self::Sessions => &[Times(1.0, Local), AtLeast(800.0)],
            Self::Classic => &[AtLeast(800.0)],
            Self::BulkDown | Self::BulkUp => &[Times(2.5, Ssh), Times(1.4, SshFast)],
            // At most 0.6 of what ssh takes.
            Self::BulkDownCpu | Self::BulkUpCpu => &[Times(1.0 / 0.6, Ssh)],
            Self::Lines => &[Times(2.0, Ssh)],
            Self::BulkDownClientCpu
            | Self::BulkDownServerCpu
            | Self::BulkUpClientCpu
            | Self::BulkUpServerCpu => &[],
        }
    }
}
