//! Explicit congestion notification across the tunnel (RFC 6040).
//!
//! The outer packet's field is QUIC's own: it sends ECT(0) while the path takes marks. A router that
//! marks an outer packet means the flow inside it, so the mark is moved onto the inner packet, whose
//! receiver tells its sender. A sender that takes no marks must see a loss instead. Inner marks cross
//! in the inner header as they are.

use bytes::{Bytes, BytesMut};

use crate::packet::{Dropped, Header};

/// The field when a sender takes no marks (RFC 3168 section 5).
const NOT_ECT: u8 = 0b00;
/// Congestion experienced.
const CE: u8 = 0b11;

/// What the host gets of an inner packet whose outer packet was marked "congestion experienced":
/// column "CE" of RFC 6040 figure 4. `header` is the packet's own.
///
/// # Errors
/// [`Dropped::Congestion`]: its sender takes no marks.
pub fn mark(packet: Bytes, header: &Header) -> Result<Bytes, Dropped> {
    match header.ecn() {
        CE => return Ok(packet),
        NOT_ECT => return Err(Dropped::Congestion),
        _ => {}
    }
    // Other packets may share the buffer; then this one moves out. Marks are rare.
    let mut packet = packet.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    if header.dst().is_ipv4() {
        let before = u16::from_be_bytes([packet[0], packet[1]]);
        packet[1] |= CE;
        let after = u16::from_be_bytes([packet[0], packet[1]]);
        let sum = u16::from_be_bytes([packet[10], packet[11]]);
        packet[10..12].copy_from_slice(&crate::checksum::update(sum, before, after).to_be_bytes());
    } else {
        packet[1] |= CE << 4;
    }
    Ok(packet.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::naive;

    fn v4(ecn: u8) -> Bytes {
        let mut packet = vec![0x45, 0xb8 | ecn, 0, 24, 1, 2, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2];
        let sum = !naive::sum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend([1, 2, 3, 4]);
        packet.into()
    }

    fn v6(ecn: u8) -> Bytes {
        let mut packet = vec![0; 48];
        packet[..8].copy_from_slice(&[0x6b, 0x80 | ecn << 4 | 5, 1, 2, 0, 8, 17, 64]);
        packet.into()
    }

    #[test]
    fn a_mark_goes_to_senders_that_take_marks_and_is_a_loss_to_others() {
        for make in [v4, v6] {
            for (ecn, becomes) in [(0b00, None), (0b01, Some(0b11)), (0b10, Some(0b11)), (0b11, Some(0b11))] {
                let packet = make(ecn);
                let marked = mark(packet.clone(), &Header::parse(&packet).unwrap());
                let Some(becomes) = becomes else {
                    assert_eq!(marked, Err(Dropped::Congestion));
                    continue;
                };
                assert_eq!(marked.unwrap(), make(becomes), "nothing else changes, and the checksum follows");
            }
        }
    }

    #[test]
    fn a_packet_that_shares_its_buffer_leaves_the_others_alone() {
        let both = Bytes::from([&v4(2)[..], &v4(2)].concat());
        let (first, second) = (both.slice(..24), both.slice(24..));
        let header = Header::parse(&first).unwrap();
        assert_eq!(mark(first, &header).unwrap(), v4(3));
        assert_eq!(second, v4(2));
    }
}
