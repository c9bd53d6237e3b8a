package io.tallyboard;

/** The short way to a service. */
public final class Tallyboard {
  /** The domain of the {@code google.rpc.ErrorInfo} in every error of the service. */
  public static final String ERROR_DOMAIN = "tallyboard";

  private Tallyboard() {}

  /**
   * Opens a channel without encryption, with one connection and every option at its default.
   * Connecting happens in the background, so this succeeds while the service is away.
   *
   * @param target where the service listens, as {@code host:port} or any other gRPC target
   * @return the channel; close it
   * @throws IllegalArgumentException if nothing can resolve the target
   * @see TallyboardChannel#builder(String)
   */
  public static TallyboardChannel connect(String target) {
    return TallyboardChannel.builder(target).build();
  }
}
