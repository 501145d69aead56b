// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Admission by tokens: a request costs its user one, and who has none left is
 * dropped. Users with a latency target (LS) get tokens by their target, best
 * effort ones (BE) what is left; where an admitted request goes is the
 * default's choice.
 *
 * Wire format: __u64 type, __u64 id, __u32 user, ... A datagram without a user,
 * or of a user beyond the Map, is dropped.
 *
 * A bad idea without an agent that refills: everything is dropped. A dropped
 * datagram looks to a connected sender like a closed port (ECONNREFUSED). Not
 * for TCP: a SYN carries no user.
 *
 * Maps: tokens, by user: what is left. The agent stores new ones each period
 * (a plain store discards what was left, an atomic add saves it up).
 */
#include <syrup/packet.h>

SYRUP_MAP_OF(tokens, __s64, 65536);

__s32 schedule(void *pkt_start, void *pkt_end)
{
	__u32 user;
	__s64 *left;

	if (!SYRUP_READ(pkt_start, pkt_end, SYRUP_UDP_PAYLOAD + 16, &user))
		return SYRUP_DROP;
	left = syrup_map_lookup(&tokens, user);
	/* Two CPUs may race for the last token: the loser's debt is taken from the next refill. */
	if (!left || *left <= 0 || __sync_fetch_and_add(left, -1) <= 0)
		return SYRUP_DROP;
	return SYRUP_PASS;
}
