//! `timestamptz` as [`jiff::Timestamp`], to the microsecond.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{
    PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef, Postgres,
};
use sqlx::{Decode, Encode, Type};

/// 2000-01-01T00:00:00Z, where PostgreSQL counts from, in microseconds since 1970.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

const TIMESTAMPTZ_OID: Oid = Oid(1184);
const TIMESTAMPTZ_ARRAY_OID: Oid = Oid(1185);

/// A point in time on its way to or from the database.
///
/// `infinity` and whatever else is past jiff's range read as the last (or first) time there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instant(pub(crate) Timestamp);

impl Instant {
    fn from_wire(micros: i64) -> Self {
        let beyond = if micros < 0 { Timestamp::MIN } else { Timestamp::MAX };
        let time = micros
            .checked_add(EPOCH_MICROS)
            .and_then(|micros| Timestamp::from_microsecond(micros).ok());
        Self(time.unwrap_or(beyond))
    }

    fn to_wire(self) -> i64 {
        self.0.as_microsecond().saturating_sub(EPOCH_MICROS)
    }
}

impl Type<Postgres> for Instant {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TIMESTAMPTZ_OID)
    }
}

impl PgHasArrayType for Instant {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TIMESTAMPTZ_ARRAY_OID)
    }
}

impl Encode<'_, Postgres> for Instant {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode(self.to_wire(), buffer)
    }
}

impl Decode<'_, Postgres> for Instant {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => {
                Ok(Self::from_wire(i64::from_be_bytes(value.as_bytes()?.try_into()?)))
            }
            PgValueFormat::Text => Err("a time came as text; use the extended protocol".into()),
        }
    }
}

/// From `now` until `then`; zero when it has passed.
pub(crate) fn until(then: Option<Timestamp>, now: Timestamp) -> Duration {
    then.map_or(Duration::ZERO, |then| {
        Duration::try_from(then.duration_since(now)).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wire_value_reads_and_the_ends_are_clamped() {
        assert_eq!(Instant::from_wire(0).0.to_string(), "2000-01-01T00:00:00Z");
        assert_eq!(Instant::from_wire(i64::MAX).0, Timestamp::MAX);
        assert_eq!(Instant::from_wire(i64::MIN).0, Timestamp::MIN);
        let now = Instant(Timestamp::from_microsecond(1_700_000_000_123_456).unwrap());
        assert_eq!(Instant::from_wire(now.to_wire()), now);
    }
}
