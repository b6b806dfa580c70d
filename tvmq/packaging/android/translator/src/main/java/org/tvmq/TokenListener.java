// SPDX-License-Identifier: Apache-2.0
package org.tvmq;

/** Hears of every output token while a translation runs, on the thread that translates. */
public interface TokenListener {
    /** False stops the translation, which then ends as a {@link TvmqException} with code 6. */
    boolean onToken(int sentence, int id);
}
