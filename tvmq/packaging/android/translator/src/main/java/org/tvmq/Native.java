// SPDX-License-Identifier: Apache-2.0
package org.tvmq;

import java.nio.charset.StandardCharsets;

/** The functions of tvmq.h, as tvmq_jni.c offers them. Handles are pointers; {@link TvmqModel} and {@link TvmqSession} guard them. */
final class Native {
    static {
        System.loadLibrary("tvmq_jni");
    }

    private Native() {}

    static native long load(byte[] path, byte[] isa, boolean installed);

    static native void unload(long model);

    static native byte[] info(long model, byte[] key);

    static native double number(long model, byte[] key, double otherwise);

    static native long open(long model, int threads);

    static native void close(long session);

    static native void set(long session, byte[] option, double value);

    static native void translate(long session, int[] ids, int[] lengths, TokenListener listener);

    static native int[] result(long session, int sentence, int rank);

    static native float score(long session, int sentence, int rank);

    static native void encode(long session, byte[] function, int[] ids, int[] types, int[] lengths);

    static native float[] rows(long session);

    static native int columns(long session);

    static native void cancel(long session);

    /** Called by tvmq_jni.c. */
    static TvmqException error(int code, byte[] message) {
        return new TvmqException(code, text(message));
    }

    static byte[] bytes(String text) {
        return text == null ? null : text.getBytes(StandardCharsets.UTF_8);
    }

    static String text(byte[] bytes) {
        return bytes == null ? null : new String(bytes, StandardCharsets.UTF_8);
    }
}
