"""What a user may say, checked before anything heavy is imported. No torch here."""
