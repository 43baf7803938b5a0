//! Certificates made part by part, for tests: with a signature that nobody has made.

use super::*;

/// What a certificate says; the default is a good one of alice's.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) kind: u32,
    pub(crate) serial: u64,
    pub(crate) key_id: Vec<u8>,
    pub(crate) principals: Vec<Vec<u8>>,
    pub(crate) valid: (u64, u64),
    pub(crate) critical: Vec<(&'static str, Vec<u8>)>,
    pub(crate) extensions: Vec<(&'static str, Vec<u8>)>,
    pub(crate) key: u8,
    pub(crate) authority: Vec<u8>,
}

pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// The blob of an ed25519 key whose bytes are all this one.
pub(crate) fn ed25519(byte: u8) -> Vec<u8> {
    [string(b"ssh-ed25519"), string(&[byte; 32])].concat()
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            kind: 1,
            serial: 7,
            key_id: b"alice's laptop".to_vec(),
            principals: vec![b"alice".to_vec()],
            valid: (1000, 2000),
            critical: Vec::new(),
            extensions: vec![("permit-pty", Vec::new())],
            key: 1,
            authority: ed25519(0xca),
        }
    }
}

impl Draft {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let options = |list: &[(&str, Vec<u8>)]| -> Vec<u8> {
            let pairs = list.iter();
            pairs
                .flat_map(|(name, value)| [string(name.as_bytes()), string(value)].concat())
                .collect()
        };
        let principals: Vec<u8> = self.principals.iter().flat_map(|name| string(name)).collect();
        [
            string(b"ssh-ed25519-cert-v01@openssh.com"),
            string(&[9; 32]),
            string(&[self.key; 32]),
            self.serial.to_be_bytes().to_vec(),
            self.kind.to_be_bytes().to_vec(),
            string(&self.key_id),
            string(&principals),
            self.valid.0.to_be_bytes().to_vec(),
            self.valid.1.to_be_bytes().to_vec(),
            string(&options(&self.critical)),
            string(&options(&self.extensions)),
            string(b""),
            string(&self.authority),
            string(b"a signature"),
        ]
        .concat()
    }

    pub(crate) fn parse(&self) -> Result<Certificate, CertificateError> {
        Certificate::parse(&PublicKeyBlob::from_wire(self.bytes()).unwrap())
    }

    pub(crate) fn certificate(&self) -> Certificate {
        self.parse().unwrap()
    }
}
