//! One question of a client, and the answer's way back into bytes. Pure.
//!
//! [`Question::parse`] is the only way in: what it lets through is one question of the internet's
//! class, asked of a resolver. Not here: what the answer is.

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Name, Record, RecordType};

/// Bytes of a header, RFC 1035 section 4.1.1.
const HEADER_BYTES: usize = 12;
/// What a UDP answer may have when the client names no size, RFC 1035 section 4.2.1.
const PLAIN_BYTES: usize = 512;
/// The most that is sent, and asked for, in one UDP datagram: crosses every IPv6 path whole (DNS flag day 2020).
pub const UDP_BYTES: u16 = 1232;

/// What a client wants to know.
#[derive(Clone, Debug)]
pub struct Question {
    id: u16,
    /// As the client wrote it: some check that its capitals come back.
    query: Query,
    recursion_desired: bool,
    checking_disabled: bool,
    edns: Option<ClientEdns>,
}

#[derive(Clone, Copy, Debug)]
struct ClientEdns {
    payload_bytes: u16,
    dnssec_ok: bool,
}

/// What does not depend on who asks: two clients with the same subject get the same answer from upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// In lower case.
    pub name: Name,
    /// The record's type.
    pub kind: RecordType,
    /// The client wants signatures, too (RFC 4035 section 3.2.1).
    pub dnssec_ok: bool,
    /// The client checks signatures itself (RFC 4035 section 3.2.2).
    pub checking_disabled: bool,
}

/// What is told about a name.
#[derive(Clone, Debug)]
pub struct Answer {
    /// RFC 1035 section 4.1.1, RCODE.
    pub code: ResponseCode,
    /// We are the source.
    pub authoritative: bool,
    /// The records asked for.
    pub answers: Vec<Record>,
    /// Where they come from, or why there are none.
    pub authorities: Vec<Record>,
    /// What goes with them.
    pub additionals: Vec<Record>,
}

impl Answer {
    /// No records at all.
    pub fn bare(code: ResponseCode) -> Self {
        Self { code, authoritative: false, answers: vec![], authorities: vec![], additionals: vec![] }
    }
}

/// Bytes that are no question for us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Not even a question: whoever sent it expects nothing.
    Ignored,
    /// This is sent back.
    Told(Vec<u8>),
}

impl Question {
    /// Reads one datagram, or one message of a stream.
    ///
    /// # Errors
    /// [`Rejected`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Rejected> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Err(Rejected::Ignored) };
        let id = u16::from_be_bytes([header[0], header[1]]);
        let is_answer = header[2] & 0x80 != 0;
        if is_answer {
            return Err(Rejected::Ignored); // answering answers makes loops
        }
        let op_code = OpCode::from_u8((header[2] >> 3) & 0x0f);
        if op_code != OpCode::Query {
            return Err(told(Message::error_msg(id, op_code, ResponseCode::NotImp)));
        }
        // Before the parser reserves memory for as many as are claimed.
        if header[4..6] != [0, 1] {
            return Err(told(Message::error_msg(id, op_code, ResponseCode::FormErr)));
        }
        let parsed = Message::from_vec(bytes).ok().and_then(|mut message| Some((message.queries.pop()?, message)));
        let Some((query, message)) = parsed else {
            return Err(told(Message::error_msg(id, op_code, ResponseCode::FormErr)));
        };
        let edns = message
            .edns
            .as_ref()
            .map(|edns| ClientEdns { payload_bytes: edns.max_payload(), dnssec_ok: edns.flags().dnssec_ok });
        let question = Self {
            id,
            query,
            recursion_desired: message.recursion_desired,
            checking_disabled: message.checking_disabled,
            edns,
        };
        match question.objection(message.version()) {
            Some(code) => Err(Rejected::Told(question.reply(&Answer::bare(code), usize::from(UDP_BYTES)))),
            None => Ok(question),
        }
    }

    /// Why a well-formed question is not answered.
    fn objection(&self, edns_version: u8) -> Option<ResponseCode> {
        match self.query.query_type() {
            _ if edns_version > 0 => Some(ResponseCode::BADVERS),
            _ if self.query.query_class() != DNSClass::IN => Some(ResponseCode::Refused),
            // Transfers and what belongs to a message rather than to a name.
            RecordType::AXFR | RecordType::IXFR | RecordType::OPT | RecordType::TSIG => Some(ResponseCode::Refused),
            // Without recursion one asks what others have asked before.
            _ if !self.recursion_desired => Some(ResponseCode::Refused),
            _ => None,
        }
    }

    /// What is asked, apart from who asks.
    pub fn subject(&self) -> Subject {
        let mut name = self.query.name().to_lowercase();
        name.set_fqdn(true);
        Subject {
            name,
            kind: self.query.query_type(),
            dnssec_ok: self.edns.is_some_and(|edns| edns.dnssec_ok),
            checking_disabled: self.checking_disabled,
        }
    }

    /// The most bytes of an answer in one UDP datagram.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_BYTES, |edns| usize::from(edns.payload_bytes.min(UDP_BYTES)).max(PLAIN_BYTES))
    }

    /// The answer in bytes. One that is longer than `limit` says that it is cut, so that the client comes by TCP.
    pub fn reply(&self, answer: &Answer, limit: usize) -> Vec<u8> {
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        message.metadata.response_code = answer.code;
        message.metadata.authoritative = answer.authoritative;
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.query.clone());
        message.answers.clone_from(&answer.answers);
        message.authorities.clone_from(&answer.authorities);
        message.additionals.clone_from(&answer.additionals);
        if let Some(edns) = self.edns {
            let mut ours = Edns::new();
            ours.set_max_payload(UDP_BYTES).set_dnssec_ok(edns.dnssec_ok);
            message.set_edns(ours);
        }
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= limit => bytes,
            Ok(_) => encode(&message.truncate()),
            Err(_) => encode(&Message::error_msg(self.id, OpCode::Query, ResponseCode::ServFail)),
        }
    }
}

fn told(mut message: Message) -> Rejected {
    message.metadata.recursion_available = true;
    Rejected::Told(encode(&message))
}

/// A question and a header always have room.
fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::RData;
    use hickory_resolver::proto::rr::rdata::A;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_has_the_clients_id_and_capitals() {
        let question = Question::parse(&asked("Www.Example.", |_| {})).unwrap();
        assert_eq!(question.subject().name.to_ascii(), "www.example.");
        let reply = Message::from_vec(&question.reply(&addresses(1), question.udp_limit())).unwrap();
        assert_eq!(reply.id, 4711);
        assert!(reply.queries[0].name().eq_case(&Name::from_ascii("Www.Example.").unwrap()));
        assert!(reply.recursion_available && !reply.truncation && reply.answers.len() == 1);
        assert_eq!(reply.edns, None, "who does not speak EDNS is not told any");
    }

    #[test]
    fn what_does_not_fit_is_cut_and_said_so() {
        let plain = Question::parse(&asked("www.example.", |_| {})).unwrap();
        let wide = Question::parse(&asked("www.example.", |message| {
            message.edns.get_or_insert_with(Edns::new).set_max_payload(4096).set_dnssec_ok(true);
        }))
        .unwrap();
        assert_eq!((plain.udp_limit(), wide.udp_limit()), (512, 1232));
        assert!(wide.subject().dnssec_ok && !plain.subject().dnssec_ok);
        let answer = addresses(60);
        for (question, truncated) in [(&plain, true), (&wide, false)] {
            let bytes = question.reply(&answer, question.udp_limit());
            assert!(bytes.len() <= question.udp_limit());
            assert_eq!(Message::from_vec(&bytes).unwrap().truncation, truncated);
        }
        assert_eq!(Message::from_vec(&plain.reply(&answer, usize::MAX)).unwrap().answers.len(), 60, "by TCP");
    }

    #[test]
    fn what_is_no_question_for_a_resolver_is_refused_in_its_own_way() {
        let code = |change: fn(&mut Message)| match Question::parse(&asked("www.example.", change)) {
            Err(Rejected::Told(bytes)) => Message::from_vec(&bytes).unwrap().response_code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code(|m| m.metadata.op_code = OpCode::Update), ResponseCode::NotImp);
        assert_eq!(code(|m| m.metadata.recursion_desired = false), ResponseCode::Refused);
        assert_eq!(code(|m| _ = m.queries[0].set_query_class(DNSClass::CH)), ResponseCode::Refused);
        assert_eq!(code(|m| _ = m.queries[0].set_query_type(RecordType::AXFR)), ResponseCode::Refused);
        let version_1 = code(|m| _ = m.edns.get_or_insert_with(Edns::new).set_version(1));
        assert_eq!(u16::from(version_1), 16, "BADVERS, which shares its number with BADSIG");
        assert_eq!(code(|m| m.queries.clear()), ResponseCode::FormErr);
        assert_eq!(code(|m| m.queries.push(m.queries[0].clone())), ResponseCode::FormErr);
        let answer = asked("www.example.", |m| m.metadata.message_type = MessageType::Response);
        assert_eq!(Question::parse(&answer).unwrap_err(), Rejected::Ignored);
        assert_eq!(Question::parse(b"short").unwrap_err(), Rejected::Ignored);
    }

    proptest! {
        #[test]
        fn no_bytes_bring_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Err(Rejected::Told(reply)) = Question::parse(&bytes) {
                prop_assert!(reply.len() <= usize::from(UDP_BYTES));
                prop_assert_eq!(&reply[..2], &bytes[..2], "the id comes back");
            }
        }
    }

    fn asked(name: &str, change: impl Fn(&mut Message)) -> Vec<u8> {
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        change(&mut message);
        message.to_vec().unwrap()
    }

    fn addresses(count: u8) -> Answer {
        let name = Name::from_ascii("www.example.").unwrap();
        let record = |last| Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, 2, last)));
        Answer { answers: (0..count).map(record).collect(), ..Answer::bare(ResponseCode::NoError) }
    }
}
