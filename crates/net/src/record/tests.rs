//! Our record layer against rustls's, both ways, and what it must not accept.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::{ClientConnection, ServerConnection, SupportedCipherSuite};

use super::opener::{FRUITLESS_MAX, Opened};
use super::*;
use crate::hand_off::HandOff;
use crate::host_key::{HostKey, HostKeys};
use crate::tls::{self, ClientSide, ServerSide, TlsServer, Verdict};

const SUITES: [SupportedCipherSuite; 3] = [
    provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
    provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
    provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// Both ends of a handshake that is over, as rustls has them.
struct Ends {
    client: ClientConnection,
    client_side: ClientSide,
    server: ServerConnection,
    server_side: ServerSide,
}

fn shake_hands(suite: SupportedCipherSuite) -> Ends {
    let host_keys = HostKeys::new(vec![HostKey::generate().unwrap()]).unwrap();
    let (mut server, server_side) = TlsServer::new(&host_keys).unwrap().accept().unwrap();
    let provider = CryptoProvider { cipher_suites: vec![suite], ..provider::default_provider() };
    let (mut client, client_side) =
        tls::connect_with(Arc::new(provider), &[], |_, _| Verdict::Accept).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        feed(&mut server, &bytes);
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    Ends { client, client_side, server, server_side }
}

/// Gives rustls these bytes, and returns the data that was in them.
fn feed(server: &mut ServerConnection, mut bytes: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while !bytes.is_empty() {
        server.read_tls(&mut bytes).unwrap();
        server.process_new_packets().unwrap();
        let _ = server.reader().read_to_end(&mut data);
    }
    data
}

/// Our record layer, of the client's end, and rustls's of the server's.
struct Mixed {
    opener: RecordOpener,
    sealer: RecordSealer,
    server: ServerConnection,
}

fn mixed(suite: SupportedCipherSuite) -> Mixed {
    let Ends { client, client_side, server, .. } = shake_hands(suite);
    let suite = Suite::of(suite.suite()).unwrap();
    let (of_client, of_server) = client_side.traffic_secrets().take().unwrap();
    let extracted = client.dangerous_extract_secrets().unwrap();
    let sending = TrafficKeys::new(suite, &of_client, extracted.tx.0).unwrap();
    let receiving = TrafficKeys::new(suite, &of_server, extracted.rx.0).unwrap();
    let opener = RecordOpener::new(receiving, Peer::Server);
    Mixed { opener, sealer: RecordSealer::new(sending, &[]).unwrap(), server }
}

impl TrafficKeys {
    fn copy(keys: &Self) -> Self {
        Self::new(keys.suite(), keys.secret(), keys.sequence()).unwrap()
    }
}

impl Mixed {
    fn new() -> Self {
        mixed(SUITES[0])
    }

    /// Sends pieces to rustls, and returns what it read.
    fn send(&mut self, pieces: &[&[u8]]) -> Vec<u8> {
        let mut pieces: VecDeque<Bytes> =
            pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect();
        let mut received = Vec::new();
        loop {
            self.sealer.seal(&mut pieces).unwrap();
            let sent = drain(&mut self.sealer);
            if sent.is_empty() {
                return received;
            }
            received.extend(feed(&mut self.server, &sent));
        }
    }

    /// What rustls has to send.
    fn records_of_server(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.server.wants_write() {
            self.server.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    fn open(&mut self, bytes: &mut [u8]) -> (Opened, Vec<u8>) {
        let mut data = Vec::new();
        let opened = self.opener.open(bytes, &mut |bytes| data.extend_from_slice(bytes));
        (opened, data)
    }

    /// A record by rustls's side of the connection, of any inner type.
    fn forge(&mut self, content: &[u8], content_type: u8) -> Vec<u8> {
        let mut keys = TrafficKeys::copy(self.opener.keys());
        let length = u16::try_from(content.len() + 1 + TAG_BYTES).unwrap();
        let [high, low] = length.to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        let mut ciphertext = content.to_vec();
        let mut tail = [0; 1 + TAG_BYTES];
        keys.seal_in_place(header, &mut ciphertext, content_type, &mut tail).unwrap();
        [&header[..], &ciphertext, &tail].concat()
    }

    /// What comes of such a record.
    fn failure(&mut self, content: &[u8], content_type: u8) -> Option<RecordError> {
        let mut record = self.forge(content, content_type);
        self.open(&mut record).0.failure
    }
}

fn drain(sealer: &mut RecordSealer) -> Vec<u8> {
    let sent = sealer.unsent().to_vec();
    sealer.sent(sent.len());
    assert!(sealer.unsent().is_empty());
    sent
}

fn noise(count: usize) -> Vec<u8> {
    (0..count).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect()
}

#[test]
fn rustls_reads_what_we_write_with_every_suite() {
    let data = noise(700_000);
    for suite in SUITES {
        let mut ends = mixed(suite);
        assert_eq!(ends.send(&[b"a", b"", b"bc"]), b"abc");
        let (front, rest) = data.split_at(28);
        let (middle, end) = rest.split_at(65_536);
        assert_eq!(ends.send(&[front, middle, end]), data);
        ends.sealer.seal_alert(None).unwrap();
        let alert = drain(&mut ends.sealer);
        feed(&mut ends.server, &alert);
        assert!(ends.server.reader().read(&mut [0]).is_ok_and(|count| count == 0));
    }
}

#[test]
fn we_read_what_rustls_writes_with_every_suite_at_every_split() {
    // Records of several sizes, an empty one, and the end.
    let written: [&[u8]; 4] = [b"one", b"two and more", b"", b"3"];
    let expected = written.concat();
    for suite in SUITES {
        let mut ends = mixed(suite);
        let whole = records(&mut ends, &written);
        for split in 0..=whole.len() {
            let keys = TrafficKeys::copy(ends.opener.keys());
            let opener = RecordOpener::new(keys, Peer::Server);
            let (received, ended) = open_in_two(opener, &whole, split);
            assert_eq!((received, ended), (expected.clone(), true), "{suite:?} {split}");
        }
        // Large ones, byte for byte.
        let mut ends = mixed(suite);
        let data = noise(40_000);
        let mut buffer = Vec::new();
        let mut received = Vec::new();
        for byte in records(&mut ends, &[&data]) {
            buffer.push(byte);
            let whole = RecordOpener::is_whole(&buffer);
            let (opened, data) = ends.open(&mut buffer);
            assert_eq!((opened.failure, opened.consumed > 0), (None, whole));
            received.extend(data);
            buffer.drain(..opened.consumed);
        }
        assert!(buffer.is_empty());
        assert_eq!(received, data);
    }
}

/// What rustls makes of these writes, and its close_notify.
fn records(ends: &mut Mixed, written: &[&[u8]]) -> Vec<u8> {
    for data in written {
        ends.server.writer().write_all(data).unwrap();
    }
    ends.server.send_close_notify();
    ends.records_of_server()
}

/// The data of two pieces, and whether they held the end.
fn open_in_two(mut opener: RecordOpener, bytes: &[u8], split: usize) -> (Vec<u8>, bool) {
    let (front, behind) = bytes.split_at(split);
    let mut data = Vec::new();
    let mut sink = |bytes: &[u8]| data.extend_from_slice(bytes);
    let mut buffer = front.to_vec();
    let first = opener.open(&mut buffer, &mut sink);
    buffer.drain(..first.consumed);
    buffer.extend_from_slice(behind);
    let second = opener.open(&mut buffer, &mut sink);
    assert_eq!((first.failure, second.failure), (None, None));
    assert_eq!(second.consumed, buffer.len());
    (data, first.end || second.end)
}

#[test]
fn keys_are_renewed_by_either_side() {
    for suite in SUITES {
        let mut ends = mixed(suite);
        // Ours, before the limit of records is reached: rustls follows.
        ends.sealer = ends.sealer.with_records_per_key(3);
        for round in 0..20 {
            assert_eq!(ends.send(&[&[round; 10]]), [round; 10]);
        }
        assert!(ends.sealer.keys().sequence() <= 3);
        // Theirs, which asks for ours too.
        for round in 0..5 {
            let before = ends.sealer.keys().secret().to_vec();
            ends.server.refresh_traffic_keys().unwrap();
            ends.server.writer().write_all(&[round; 5]).unwrap();
            let mut records = ends.records_of_server();
            let (opened, data) = ends.open(&mut records);
            assert_eq!((opened.failure, data), (None, vec![round; 5]));
            assert!(opened.update_requested);
            ends.sealer.request_update();
            assert_eq!(ends.send(&[b"answer"]), b"answer");
            assert_ne!(ends.sealer.keys().secret(), before);
        }
    }
}

#[test]
fn a_connection_goes_on_after_it_was_handed_off_in_mid_stream() {
    for suite in SUITES {
        let mut ends = mixed(suite);
        assert_eq!(ends.send(&[b"before"]), b"before");
        ends.server.writer().write_all(b"half of it").unwrap();
        let mut records = ends.records_of_server();
        let unopened = records.split_off(9);
        // Sealed and not sent.
        ends.sealer.seal(&mut VecDeque::from([Bytes::from_static(b"unsent")])).unwrap();
        let state = HandOff::of(&ends.opener, &ends.sealer, records).with_plaintext(7);
        let secret = ends.sealer.keys().secret().to_vec();
        assert!(!format!("{state:?}").contains(&format!("{secret:?}")));
        let bytes = state.encode();
        let state = HandOff::decode(&bytes).unwrap();
        assert_eq!(state.plaintext_bytes(), 7);
        let (opener, sealer, mut buffer) = state.into_parts().unwrap();
        let mut ends = Mixed { opener, sealer, server: ends.server };
        buffer.extend(unopened);
        assert_eq!(ends.open(&mut buffer).1, b"half of it");
        assert_eq!(ends.send(&[b" and after"]), b"unsent and after");
    }
}

#[test]
fn a_state_that_is_cut_or_of_another_suite_is_none() {
    let ends = Mixed::new();
    let bytes = HandOff::of(&ends.opener, &ends.sealer, Vec::new()).encode();
    for end in 0..bytes.len() {
        assert!(HandOff::decode(&bytes[..end]).is_err(), "{end}");
    }
    assert!(HandOff::decode(&bytes).is_ok());
    let mut other = bytes.to_vec();
    other[1] = 4;
    assert!(HandOff::decode(&other).is_err());
    let mut long = bytes.to_vec();
    long.resize(bytes.len() + RECORD_BYTES_MAX, 0);
    assert!(HandOff::decode(&long).is_ok());
    long.push(0);
    assert!(HandOff::decode(&long).is_err());
}

#[test]
fn the_listener_can_hand_off_what_rustls_began() {
    // The server's first record was the half-RTT hello: its keys have been used once.
    let Ends { mut client, mut server, server_side, .. } = shake_hands(SUITES[1]);
    server.writer().write_all(b"hello").unwrap();
    let mut sent = Vec::new();
    server.write_tls(&mut sent).unwrap();
    let (_, of_server) = server_side.traffic_secrets().take().unwrap();
    assert!(server_side.traffic_secrets().take().is_none());
    let extracted = server.dangerous_extract_secrets().unwrap();
    assert_eq!(extracted.tx.0, 1);
    let keys = TrafficKeys::new(Suite::Aes256GcmSha384, &of_server, extracted.tx.0).unwrap();
    let mut sealer = RecordSealer::new(keys, &sent).unwrap();
    sealer.seal(&mut VecDeque::from([Bytes::from_static(b" from us")])).unwrap();
    let sent = drain(&mut sealer);
    let mut sent = sent.as_slice();
    while !sent.is_empty() {
        client.read_tls(&mut sent).unwrap();
        client.process_new_packets().unwrap();
    }
    let mut received = [0; 32];
    let count = client.reader().read(&mut received).unwrap();
    assert_eq!(&received[..count], b"hello from us");
}

#[test]
fn what_was_changed_or_is_no_record_fails() {
    let mut ends = Mixed::new();
    let good = ends.forge(b"data", APPLICATION_DATA);
    for index in 0..good.len() {
        let mut changed = good.clone();
        changed[index] ^= 0x40;
        let mut ends = Mixed::new();
        let opened = ends.open(&mut changed).0;
        // A length that was changed can also mean that the record has not come to its end.
        assert!(
            opened.failure.is_some() || (opened.consumed == 0 && (index == 3 || index == 4)),
            "{index}"
        );
        assert!(!opened.data);
    }
    let mut http = *b"HTTP/1.1 400 Bad Request\r\n";
    assert_eq!(ends.open(&mut http).0.failure, Some(RecordError::UnexpectedType(b'H')));
    // One byte over what encryption may add, and told before the record is there.
    let longest = u16::try_from(PLAINTEXT_BYTES_MAX + EXPANSION_BYTES_MAX).unwrap();
    let [high, low] = longest.to_be_bytes();
    assert_eq!(ends.open(&mut [APPLICATION_DATA, 3, 3, high, low]).0, Opened::default());
    let [high, low] = (longest + 1).to_be_bytes();
    let opened = ends.open(&mut [APPLICATION_DATA, 3, 3, high, low]).0;
    assert_eq!(opened.failure, Some(RecordError::TooLong));
    assert!(!RecordOpener::is_whole(&[APPLICATION_DATA, 3, 3, high]));
}

#[test]
fn padding_is_no_data_and_plaintext_has_its_limit() {
    let mut ends = Mixed::new();
    let mut record = ends.forge(b"data\x17\0\0\0", 0);
    let (opened, data) = ends.open(&mut record);
    assert_eq!((opened.failure, data.as_slice()), (None, &b"data"[..]));
    let mut record = ends.forge(&noise(PLAINTEXT_BYTES_MAX), APPLICATION_DATA);
    assert_eq!(ends.open(&mut record).1.len(), PLAINTEXT_BYTES_MAX);
    assert_eq!(
        ends.failure(&noise(PLAINTEXT_BYTES_MAX + 1), APPLICATION_DATA),
        Some(RecordError::TooLong)
    );
    assert_eq!(Mixed::new().failure(&[0; 20], 0), Some(RecordError::UnexpectedType(0)));
    assert_eq!(Mixed::new().failure(b"x", 20), Some(RecordError::UnexpectedType(20)));
}

#[test]
fn alerts_end_the_connection() {
    let closed = |content: &[u8]| {
        let mut ends = Mixed::new();
        let mut record = ends.forge(content, ALERT);
        let opened = ends.open(&mut record).0;
        (opened.end, opened.failure)
    };
    assert_eq!(closed(&[1, CLOSE_NOTIFY]), (true, None));
    assert_eq!(closed(&[1, USER_CANCELED]), (false, None));
    assert_eq!(closed(&[2, BAD_RECORD_MAC]), (false, Some(RecordError::Alert(BAD_RECORD_MAC))));
    assert_eq!(closed(&[2]), (false, Some(RecordError::Malformed)));
    assert_eq!(closed(&[]), (false, Some(RecordError::UnexpectedType(ALERT))));
    // We tell rustls what it did wrong, and answer no alert with one.
    let mut ends = Mixed::new();
    ends.sealer.seal_alert(Some(RecordError::Alert(BAD_RECORD_MAC))).unwrap();
    assert!(ends.sealer.unsent().is_empty());
    let mut ends = Mixed::new();
    ends.sealer.seal_alert(Some(RecordError::Decrypt)).unwrap();
    let alert = drain(&mut ends.sealer);
    // And then nothing more, not even a close.
    ends.sealer.seal_alert(None).unwrap();
    assert!(ends.sealer.unsent().is_empty());
    let mut alert = alert.as_slice();
    ends.server.read_tls(&mut alert).unwrap();
    assert_eq!(
        ends.server.process_new_packets().unwrap_err(),
        rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac)
    );
}

#[test]
fn of_the_handshakes_messages_only_two_have_a_place_here() {
    let failure = |message: &[u8]| Mixed::new().failure(message, HANDSHAKE);
    assert_eq!(failure(&[NEW_SESSION_TICKET, 0, 0, 2, 1, 2]), None);
    assert_eq!(failure(&[KEY_UPDATE, 0, 0, 1, 0]), None);
    assert_eq!(failure(&[]), Some(RecordError::UnexpectedType(HANDSHAKE)));
    assert_eq!(failure(&[KEY_UPDATE, 0, 0, 1, 2]), Some(RecordError::UnknownUpdate));
    assert_eq!(failure(&[KEY_UPDATE, 0, 0, 0]), Some(RecordError::Malformed));
    let twice = [KEY_UPDATE, 0, 0, 1, 0, KEY_UPDATE, 0, 0, 1, 0];
    assert_eq!(failure(&twice), Some(RecordError::UnexpectedHandshake));
    // A client has no tickets to give.
    let mut ends = Mixed::new();
    ends.opener = RecordOpener::new(TrafficKeys::copy(ends.opener.keys()), Peer::Client);
    let ticket = ends.failure(&[NEW_SESSION_TICKET, 0, 0, 2, 1, 2], HANDSHAKE);
    assert_eq!(ticket, Some(RecordError::UnexpectedHandshake));
    let told = [
        (RecordError::Decrypt, 20),
        (RecordError::TooLong, 22),
        (RecordError::UnexpectedType(1), 10),
        (RecordError::UnexpectedHandshake, 10),
        (RecordError::Fruitless, 10),
        (RecordError::UnknownUpdate, 47),
        (RecordError::Malformed, 50),
    ];
    for (error, alert) in told {
        assert_eq!(error.alert(), Some(alert), "{error}");
    }
    for bad in [&[1, 0, 0, 0][..], &[KEY_UPDATE, 0, 0, 1], &[KEY_UPDATE, 0], &[4, 255, 255, 255]] {
        assert_eq!(failure(bad), Some(RecordError::UnexpectedHandshake), "{bad:?}");
    }
}

#[test]
fn records_without_data_are_bounded_in_a_row() {
    let mut ends = Mixed::new();
    for _ in 0..2 {
        for _ in 0..FRUITLESS_MAX {
            assert_eq!(ends.failure(b"", APPLICATION_DATA), None);
        }
        assert_eq!(ends.failure(b"data", APPLICATION_DATA), None);
    }
    for _ in 0..FRUITLESS_MAX {
        assert_eq!(ends.failure(&[KEY_UPDATE, 0, 0, 1, 1], HANDSHAKE), None);
    }
    assert_eq!(ends.failure(&[1, USER_CANCELED], ALERT), Some(RecordError::Fruitless));
}

#[test]
fn what_waits_is_bounded() {
    let mut ends = Mixed::new();
    let data = noise(1024 * 1024);
    let mut pieces = VecDeque::from([Bytes::from(data.clone())]);
    ends.sealer.seal(&mut pieces).unwrap();
    let waiting = ends.sealer.unsent().len();
    let left: usize = pieces.iter().map(Bytes::len).sum();
    assert!(waiting <= 16 * RECORD_BYTES_MAX && left > 0, "{waiting} {left}");
    ends.sealer.seal(&mut pieces).unwrap();
    assert_eq!(ends.sealer.unsent().len(), waiting);
    // The alert has its room all the same.
    ends.sealer.seal_alert(None).unwrap();
    let sent = drain(&mut ends.sealer);
    let received = feed(&mut ends.server, &sent);
    assert_eq!(received, data[..data.len() - left]);
    let keys = TrafficKeys::new(Suite::Aes128GcmSha256, &[1; 32], 0).unwrap();
    assert!(RecordSealer::new(keys, &vec![0; 512 * 1024]).is_err());
}

#[test]
fn no_sequence_number_comes_twice() {
    let mut keys = TrafficKeys::new(Suite::Aes128GcmSha256, &[1; 32], u64::MAX - 1).unwrap();
    let seal = |keys: &mut TrafficKeys| {
        keys.seal_in_place([0; HEADER_BYTES], &mut [0; 4], APPLICATION_DATA, &mut [0; 17])
    };
    assert_eq!(seal(&mut keys), Ok(()));
    assert_eq!(seal(&mut keys), Err(RecordError::Encrypt));
    assert_eq!(seal(&mut keys), Err(RecordError::Encrypt));
}
