//! Answers of upstream, for as long as they say. Bounded in bytes, not in entries: one answer may have 64 KiB.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, Record};
use hickory_resolver::proto::serialize::binary::BinEncodable;
use moka::sync::Cache as Shared;

use super::question::{Answer, Subject};

/// Of all answers together, as they are in memory: about 20,000 of the usual ones.
const CAPACITY_BYTES: u64 = 16 * 1024 * 1024;
/// The longest that a record is kept, whatever it says (RFC 8767 section 4 gives a week, most keep a day).
const LONGEST_SECONDS: u32 = 86_400;
/// The same for an answer that there is nothing (RFC 2308 section 5: one to three hours).
const LONGEST_NEGATIVE_SECONDS: u32 = 3_600;
/// A failure that a server reports is believed for so long (RFC 9520 section 3.2: one second to five minutes).
const FAILURE_SECONDS: u32 = 5;
/// What an entry has beside its records: the question, and the cache's own book-keeping.
const ENTRY_BYTES: usize = 256;

/// What was asked of upstream lately.
#[derive(Clone, Debug)]
pub struct Cache(Shared<Subject, Kept>);

#[derive(Clone, Debug)]
struct Kept {
    answer: Arc<Answer>,
    since: Instant,
    until: Instant,
}

impl Cache {
    /// An empty one.
    pub fn new() -> Self {
        let weigh = |_: &Subject, kept: &Kept| u32::try_from(weight_bytes(&kept.answer)).unwrap_or(u32::MAX);
        Self(Shared::builder().max_capacity(CAPACITY_BYTES).weigher(weigh).build())
    }

    /// What is known, with its times to live as they are now.
    pub fn get(&self, subject: &Subject, now: Instant) -> Option<Answer> {
        let kept = self.0.get(subject).filter(|kept| now < kept.until)?;
        let age = now.saturating_duration_since(kept.since).as_secs() as u32;
        let mut answer = Answer::clone(&kept.answer);
        for record in records(&mut answer) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(answer)
    }

    /// Keeps an answer, if it may be kept.
    pub fn put(&self, subject: Subject, answer: &Answer, now: Instant) {
        let seconds = lifetime_seconds(answer);
        if seconds > 0 {
            let until = now + Duration::from_secs(seconds.into());
            self.0.insert(subject, Kept { answer: Arc::new(answer.clone()), since: now, until });
        }
    }

    /// Forgets everything: another network may say something else.
    pub fn clear(&self) {
        self.0.invalidate_all();
    }
}

/// A record's own size, and its bytes on the wire for what it keeps elsewhere (texts, signatures).
fn weight_bytes(answer: &Answer) -> usize {
    let sections = [&answer.answers, &answer.authorities, &answer.additionals];
    let bytes = |record: &Record| size_of::<Record>() + record.to_bytes().map_or(0, |bytes| bytes.len());
    ENTRY_BYTES + sections.into_iter().flatten().map(bytes).sum::<usize>()
}

fn records(answer: &mut Answer) -> impl Iterator<Item = &mut Record> {
    answer.answers.iter_mut().chain(&mut answer.authorities).chain(&mut answer.additionals)
}

/// For how long an answer holds; 0 is not at all.
fn lifetime_seconds(answer: &Answer) -> u32 {
    let sections = [&answer.answers, &answer.authorities, &answer.additionals];
    let least = sections.into_iter().flatten().map(|record| record.ttl).min();
    match answer.code {
        ResponseCode::NoError if !answer.answers.is_empty() => least.unwrap_or(0).min(LONGEST_SECONDS),
        // RFC 2308 section 5: without an SOA nobody knows for how long.
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = answer.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
            soa.and_then(|soa| least.map(|least| soa.min(least))).unwrap_or(0).min(LONGEST_NEGATIVE_SECONDS)
        }
        _ => FAILURE_SECONDS,
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::{A, SOA};
    use hickory_resolver::proto::rr::{Name, RecordType};

    use super::*;

    #[test]
    fn an_answer_is_kept_as_long_as_its_shortest_record_and_grows_old() {
        let (cache, start) = (Cache::new(), Instant::now());
        let answer = Answer { answers: vec![address(300), address(60)], ..Answer::bare(ResponseCode::NoError) };
        cache.put(subject(1), &answer, start);
        let later = cache.get(&subject(1), start + Duration::from_secs(59)).unwrap();
        assert_eq!(later.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [241, 1]);
        assert!(cache.get(&subject(1), start + Duration::from_secs(60)).is_none());
        assert!(cache.get(&subject(2), start).is_none());
        let signed = Subject { dnssec_ok: true, ..subject(1) };
        assert!(cache.get(&signed, start).is_none(), "an answer without signatures is none to who wants them");
        cache.clear();
        assert!(cache.get(&subject(1), start).is_none());
    }

    #[test]
    fn each_kind_of_answer_has_a_lifetime_of_its_own() {
        let negative = |code, authorities| lifetime_seconds(&Answer { authorities, ..Answer::bare(code) });
        assert_eq!(negative(ResponseCode::NXDomain, vec![soa(900, 300)]), 300);
        assert_eq!(negative(ResponseCode::NoError, vec![soa(90_000, 90_000)]), 3600);
        assert_eq!(negative(ResponseCode::NXDomain, vec![]), 0, "nobody said for how long");
        assert_eq!(negative(ResponseCode::ServFail, vec![]), 5);
        let positive =
            |ttl| lifetime_seconds(&Answer { answers: vec![address(ttl)], ..Answer::bare(ResponseCode::NoError) });
        assert_eq!((positive(0), positive(u32::MAX)), (0, 86_400));
    }

    #[test]
    fn large_answers_do_not_add_up_beyond_the_bound() {
        let (cache, now) = (Cache::new(), Instant::now());
        let answer = Answer { answers: vec![address(300); 4000], ..Answer::bare(ResponseCode::NoError) };
        assert!(weight_bytes(&answer) > 500_000, "64 KB on the wire: {}", weight_bytes(&answer));
        for number in 0..200 {
            cache.put(subject(number), &answer, now);
        }
        cache.0.run_pending_tasks();
        assert!(cache.0.weighted_size() <= CAPACITY_BYTES, "{}", cache.0.weighted_size());
        assert!(cache.0.entry_count() > 5);
    }

    fn subject(number: u32) -> Subject {
        let name = Name::from_ascii(format!("{number}.example.")).unwrap();
        Subject { name, kind: RecordType::A, dnssec_ok: false, checking_disabled: false }
    }

    fn address(ttl: u32) -> Record {
        Record::from_rdata(Name::from_ascii("www.example.").unwrap(), ttl, RData::A(A::new(192, 0, 2, 1)))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let name = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, minimum);
        Record::from_rdata(name, ttl, RData::SOA(soa))
    }
}
