// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * One executor per flow: a hash of the two ports. Addresses are not part of a
 * policy's input (pkt_start is the transport header), so clients are told
 * apart by their source ports alone.
 *
 * A bad idea when flows are few or some are much busier than others: the load
 * is as uneven as the draw (round-robin). The kernel's default hashes the
 * addresses too; this one differs in that its choice stays the same when other
 * sockets of the group close.
 * Maps: none.
 */
#include <syrup/packet.h>

__s32 schedule(void *pkt_start, void *pkt_end)
{
	__u32 ports;

	if (!SYRUP_READ(pkt_start, pkt_end, 0, &ports))
		return SYRUP_PASS;
	ports *= 0x9e3779b1; /* 2^32 / golden ratio: spreads neighbours over the upper bits */
	return ((__u64)ports * syrup_num_executors()) >> 32;
}
