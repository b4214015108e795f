//! When the other side wants to be told (virtio 1.2 §2.7.7, §2.7.10).

/// True if moving the index from `old` to `new` passes the `event` the other side waits for.
#[inline]
pub(super) fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::passes;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn event_is_passed_exactly_when_one_of_the_steps_lands_on_it(event: u16, old: u16, steps in 0u16..2000) {
            let new = old.wrapping_add(steps);
            let naive = (0..steps).any(|i| old.wrapping_add(i) == event);
            prop_assert_eq!(passes(event, new, old), naive);
        }
    }
}
