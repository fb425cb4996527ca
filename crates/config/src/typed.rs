//! Typed settings, and the macro that declares them.

use crate::{Given, Key};

/// The settings of one table. Implemented by [`settings!`](crate::settings!), not by hand.
pub trait Settings: Sized {
    /// What they are of: the doc of the struct.
    const DOC: &'static str;
    /// Their keys, one for each field.
    const KEYS: &'static [Key];

    /// Reads them from the values of their keys. `None` where a value is not there that must be, or was
    /// refused: that is told elsewhere.
    fn read(given: &Given) -> Option<Self>;
}

/// Declares a struct of settings: each field is a key of its name, with its type, what may be given, the
/// default, and the doc. See the [crate].
///
/// Of a section with a fixed name, `struct RelaySettings in "relay."`, the paths of keys begin with that.
///
/// A field is of a type that can be read from a value ([`FromValue`](crate::FromValue)), `Option` where the key
/// is [optional](crate::ValueKind::optional). What stands behind `=` is a constant, a
/// [`Declared`](crate::Declared).
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $doc:literal])+
        $vis:vis struct $name:ident { $($fields:tt)* }
    ) => {
        $crate::settings! {
            $(#[doc = $doc])+
            $vis struct $name in "" { $($fields)* }
        }
    };
    (
        $(#[doc = $doc:literal])+
        $vis:vis struct $name:ident in $section:literal {
            $(
                $(#[doc = $field_doc:literal])+
                $field_vis:vis $field:ident : $type:ty = $declared:expr
            ),* $(,)?
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone)]
        $vis struct $name {
            $(
                $(#[doc = $field_doc])+
                $field_vis $field: $type,
            )*
        }

        impl $crate::Settings for $name {
            const DOC: &'static str = concat!($($doc),+);
            const KEYS: &'static [$crate::Key] = &[
                $($crate::Key::new(
                    concat!($section, stringify!($field)),
                    $declared,
                    concat!($($field_doc),+),
                ),)*
            ];

            fn read(given: &$crate::Given) -> Option<Self> {
                let _ = given;
                Some(Self { $($field: given.get(concat!($section, stringify!($field)))?,)* })
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{DefaultValue, Given, Settings as _, ValueKind};

    settings! {
        /// A kettle.
        /// It boils.
        struct Kettle {
            /// The name.
            name: String = ValueKind::Text.required(),
            /// The longest
            /// it boils.
            timeout: Duration = ValueKind::POSITIVE_DURATION.or("5m"),
            /// Who may.
            owner: Option<String> = ValueKind::Text.optional("everybody"),
        }
    }

    settings! {
        /// A pot.
        struct Pot in "kitchen." {
            /// Its size.
            size: u32 = ValueKind::Bytes.or("1kB"),
        }
    }

    #[test]
    fn the_paths_of_a_section_begin_with_its_name() {
        assert_eq!(Pot::KEYS[0].path, "kitchen.size");
        assert_eq!(Pot::read(&Given::with_defaults(Pot::KEYS)).unwrap().size, 1_000);
    }

    #[test]
    fn a_field_is_a_key_with_its_doc_and_default() {
        assert_eq!(Kettle::DOC, " A kettle. It boils.");
        let [name, timeout, owner] = Kettle::KEYS else { panic!("{:?}", Kettle::KEYS) };
        assert!(matches!((name.path, name.default), ("name", DefaultValue::Required)));
        assert!(matches!((timeout.path, timeout.default), ("timeout", DefaultValue::Value("5m"))));
        assert_eq!(timeout.doc, " The longest it boils.");
        assert!(matches!(owner.default, DefaultValue::Absent("everybody")));
    }

    #[test]
    fn settings_are_read_once_and_typed() {
        let given = Given::with_defaults(Kettle::KEYS);
        assert!(Kettle::read(&given).is_none(), "a name is required");
        let kettle = Kettle::read(&given.with("name", "whistler")).unwrap();
        assert_eq!((kettle.name.as_str(), kettle.timeout.as_secs()), ("whistler", 300));
        assert_eq!(kettle.owner, None);
    }
}
