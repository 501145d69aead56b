// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Size interval task assignment: SCANs have executors of their own, GETs share
 * the others in turn, so that no GET ever waits behind a SCAN.
 *
 * Wire format: the payload starts with a __u64 request type, GET = 1, SCAN = 2.
 *
 * A bad idea when the share of SCANs does not match NR_SCAN_EXECUTORS: SCANs
 * queue (their tail is the price) or their executors idle. With no executor
 * left for GETs, and for datagrams without a type, the default decides. TCP
 * connections all count as GETs: a SYN carries no request.
 * Maps: none.
 */
#include <syrup/packet.h>

enum { GET = 1, SCAN = 2 };
SYRUP_PARAM(__u32, NR_SCAN_EXECUTORS, 1); /* the first ones */
static __u32 gets, scans;

__s32 schedule(void *pkt_start, void *pkt_end)
{
	__u32 n = syrup_num_executors(), split = NR_SCAN_EXECUTORS;
	__u64 type;

	if (!SYRUP_READ(pkt_start, pkt_end, SYRUP_UDP_PAYLOAD, &type) || !split || split >= n)
		return SYRUP_PASS;
	if (type == SCAN)
		return __sync_fetch_and_add(&scans, 1) % split;
	return split + __sync_fetch_and_add(&gets, 1) % (n - split);
}
