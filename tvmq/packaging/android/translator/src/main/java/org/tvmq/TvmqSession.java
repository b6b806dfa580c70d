// SPDX-License-Identifier: Apache-2.0
package org.tvmq;

/** Buffers, threads and results of one caller. Calls from several threads wait for each other, but for {@link #cancel}. */
public final class TvmqSession implements AutoCloseable {
    private final Object life = new Object();
    private long handle;
    private boolean busy;

    TvmqSession(long handle) {
        this.handle = handle;
    }

    /** An option of the search: "beams", "n_best", "max_new_tokens", "length_penalty", see tvmq.h. */
    public synchronized void set(String option, double value) {
        Native.set(idle(), Native.bytes(option), value);
    }

    /** Translates sentences together: their token ids, each with its end token. The listener may be null. */
    public synchronized void translate(int[][] sentences, TokenListener listener) {
        long session = idle();
        busy = true;
        try {
            Native.translate(session, joined(sentences), lengths(sentences), listener);
        } finally {
            busy = false;
        }
    }

    /** Token ids of translation number rank (0 is the best) of a sentence; empty where there is none. */
    public synchronized int[] result(int sentence, int rank) {
        return Native.result(idle(), sentence, rank);
    }

    /** Length-normalised log-probability of a translation; NaN after greedy search. */
    public synchronized float score(int sentence, int rank) {
        return Native.score(idle(), sentence, rank);
    }

    /**
     * "embed", "classify" (scores of labels) or "tag" of texts together: one row for each text, or for every token.
     *
     * @param types token types, or null for zeros.
     */
    public synchronized float[][] encode(String function, int[][] texts, int[][] types) {
        long session = idle();
        int[] kinds = types == null ? null : joined(types);
        Native.encode(session, Native.bytes(function), joined(texts), kinds, lengths(texts));
        float[] flat = Native.rows(session);
        int columns = Math.max(1, Native.columns(session));
        float[][] rows = new float[flat.length / columns][columns];
        for (int i = 0; i < rows.length; i++) {
            System.arraycopy(flat, i * columns, rows[i], 0, columns);
        }
        return rows;
    }

    /** Stops the running call, from any thread, at its next step. */
    public void cancel() {
        synchronized (life) {
            Native.cancel(handle);
        }
    }

    @Override
    public synchronized void close() {
        if (handle == 0) {
            return;
        }
        long session = idle();
        synchronized (life) {
            handle = 0;
        }
        Native.close(session);
    }

    /** The handle; a listener cannot use the session that it listens to. */
    private long idle() {
        if (busy) {
            throw new IllegalStateException("the session is translating");
        }
        return handle;
    }

    private static int[] lengths(int[][] lists) {
        int[] lengths = new int[lists.length];
        for (int i = 0; i < lists.length; i++) {
            lengths[i] = lists[i].length;
        }
        return lengths;
    }

    private static int[] joined(int[][] lists) {
        int total = 0;
        for (int[] list : lists) {
            total = Math.addExact(total, list.length);
        }
        int[] all = new int[total];
        int place = 0;
        for (int[] list : lists) {
            System.arraycopy(list, 0, all, place, list.length);
            place += list.length;
        }
        return all;
    }
}
