// SPDX-License-Identifier: Apache-2.0
package org.tvmq;

/** What the runtime refused, in its own sentence. */
public final class TvmqException extends RuntimeException {
    private static final long serialVersionUID = 1;

    /** As in tvmq.h: 2 usage, 3 input, 4 resources, 5 verification, 6 cancelled. */
    public final int code;

    TvmqException(int code, String message) {
        super(message);
        this.code = code;
    }
}
