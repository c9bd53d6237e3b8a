/**
 * What a program needs beside the generated stubs of {@code io.tallyboard.v1}: a channel with the
 * published service config and request ids ({@link io.tallyboard.TallyboardChannel}), errors with
 * their details ({@link io.tallyboard.TallyboardError}), and a stream of increments that survives
 * whatever breaks it ({@link io.tallyboard.Producer}).
 */
package io.tallyboard;
